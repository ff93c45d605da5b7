"""sweeper: how much a model's outputs moved, where it starts, whether it is rounding, and which switch to put back."""

__version__ = "0.1.0"
