"""What does the hardware do? Measurements of time (and later memory, noise, curvature) that return records."""
