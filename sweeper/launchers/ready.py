"""What the first cell of a process waits for, at once and, in a worker, before there is a cell: the GPU, and imports.

Light to import, as `worker_process` is.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Sequence
from importlib import import_module


def start_driver() -> threading.Thread:
    """Has NVIDIA's driver initialise beside what comes next; where nobody else uses the GPUs it takes seconds.

    What CUDA_VISIBLE_DEVICES is now it is for this process. Python runs on meanwhile, as it would not where torch calls
    the driver.
    """
    driver = threading.Thread(target=_initialise_driver, daemon=True)
    driver.start()
    return driver


def _initialise_driver() -> None:
    with contextlib.suppress(OSError):  # there is none: planning says so
        ctypes.CDLL("libcuda.so.1").cuInit(0)


def make_ready(device: str, modules: Sequence[str]) -> None:
    """Starts the GPU, if one is meant, and imports meanwhile. What goes wrong is for the first cell to say.

    To be called when CUDA_VISIBLE_DEVICES is what it should be: packages may look at the GPUs as they are imported, and
    the first look settles what is visible.

    Args:
        device: `cpu` or `cuda`; empty before it is known.
    """
    gpu = threading.Thread(target=_start_gpu, daemon=True)
    if device == "cuda":
        gpu.start()
    for name in modules:
        with contextlib.suppress(Exception):  # numba and Triton may be missing
            import_module(name)
    if device == "cuda":
        gpu.join()


def _start_gpu() -> None:
    """Makes this process's context on its GPU, and computes nothing: cuBLAS reads at its first product what a worker
    sets once it is made."""
    import torch

    with contextlib.suppress(Exception):
        torch.cuda.synchronize()
