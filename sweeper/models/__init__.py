"""Loads a model and sets its switches: weights, attention backend, global flags; lists its state."""
