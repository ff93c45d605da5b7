"""Definitions of the measures (`docs/measures.md`) in plain torch. Knows nothing of files, Hydra or models."""
