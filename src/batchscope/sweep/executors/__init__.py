"""Where do trials run? In worker processes here (local.py) or in the caller's own process (inline.py)."""
