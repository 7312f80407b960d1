"""How does Batchscope listen to other people's training loops? Adapters that translate a framework's events.

One module per framework, none of which is loaded, nor its framework, until the user imports it.
"""
