"""What follows from the records? Plain numbers: numpy and scipy, never torch."""
