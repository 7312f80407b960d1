"""Batchscope: what batch size does to your own training run, measured with error bars."""

__version__ = "0.1.0"
