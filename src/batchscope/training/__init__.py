"""How is one trial trained? Read loop.py first: it is the whole of it, top to bottom."""
