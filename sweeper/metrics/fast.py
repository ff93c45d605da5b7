"""Which fast code serves a device; where there is none, the definitions in plain torch do."""

from __future__ import annotations

import functools
import importlib
from types import ModuleType

import torch


@functools.cache
def fast_module(device: str, name: str) -> ModuleType | None:
    """The module of that name in `metrics/cuda` (Triton's kernels), or in `metrics/cpu` (numba's loops).

    Returns:
        None for any other device, and where Triton or numba cannot be imported.
    """
    try:
        if device == "cuda" and torch.version.cuda:
            return importlib.import_module(f"sweeper.metrics.cuda.{name}")
        if device == "cpu":
            return importlib.import_module(f"sweeper.metrics.cpu.{name}")
    except ImportError:
        return None
    return None
