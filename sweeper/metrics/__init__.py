"""The measures (`docs/measures.md`), defined in plain torch, taken by faster code. Knows no files, Hydra or models."""
