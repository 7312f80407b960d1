"""What lets a large batch train like a small one? `base.py` says what a remedy is; then one file for each."""
