"""What the processor of an image or audio model gave, from a file."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from sweeper.errors import ConfigError


def read_arrays(path: Path) -> Tensor:
    """An image or a sound a row, [S, ...], on the CPU; read once while the file stays as it is.

    Raises:
        ConfigError: not one array with at least a row and a further dimension.
    """
    return _read(path, path.stat().st_mtime_ns)


def array_notes(path: Path) -> dict[str, str]:
    """What the record says of an array that a processor made of files."""
    if path.suffix != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        note = (file.metadata() or {}).get("note")
    return {} if note is None else {"media": note}


@lru_cache(maxsize=1)
def _read(path: Path, _changed_ns: int) -> Tensor:
    tensors = load_file(path) if path.suffix == ".safetensors" else {"": torch.from_numpy(np.load(path))}
    if len(tensors) != 1:
        raise ConfigError(f"inputs.arrays: {path} must hold one tensor (given: {', '.join(tensors) or 'none'})")
    array = next(iter(tensors.values())).clone()  # of its own: the file is mapped into memory
    if array.dim() < 2 or not len(array):
        raise ConfigError(f"inputs.arrays: {path} must hold a row an image or sound (given: {tuple(array.shape)})")
    return array
