"""Which fast code serves a device; where there is none, the definitions in plain torch do."""

from __future__ import annotations

import importlib
from types import ModuleType

import torch


def fast_module(device: str, *, on_cuda: str, on_cpu: str) -> ModuleType | None:
    """The module of `sweeper.metrics` with Triton's kernels for a GPU, or with numba's loops for a CPU.

    Returns:
        None for any other device, and where Triton or numba cannot be imported.
    """
    try:
        if device == "cuda" and torch.version.cuda:
            return importlib.import_module(f"sweeper.metrics.{on_cuda}")
        if device == "cpu":
            return importlib.import_module(f"sweeper.metrics.{on_cpu}")
    except ImportError:
        return None
    return None
