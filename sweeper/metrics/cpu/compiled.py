"""What the compiled loops for the CPU share: how numba compiles them, and how torch's tensors and threads reach them.

The loops themselves stay in one file each, because numba keeps compiled code until the file of its function changes.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

_INTEGER = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
DTYPES = tuple(_INTEGER)


def entry(function: Any) -> Any:
    """Compiles what Python calls. Code is kept in `__pycache__`, else in the user's cache folder, else not at all."""
    try:
        compiled = njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:  # no folder can be written
        return njit(nogil=True, error_model="numpy")(function)
    compiled._cache = _Spared(compiled._cache)
    return compiled


class _Spared:
    """numba's cache of compiled code, without which only time is lost: a cut file, or a full disk, makes
    it compile again and fails nothing."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)

    def load_overload(self, signature: Any, target: Any) -> Any:
        """The compiled code; None where it cannot be read."""
        try:
            return self._cache.load_overload(signature, target)
        except Exception:  # pickle's, of whatever kind
            with contextlib.suppress(OSError):
                self._cache.flush()
            return None

    def save_overload(self, signature: Any, code: Any) -> None:
        """Keeps the compiled code, if it can be written."""
        with contextlib.suppress(OSError):
            self._cache.save_overload(signature, code)


# Compiles what only compiled code calls.
inner = functools.partial(njit, error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)


def as_bits(tensor: Tensor) -> np.ndarray:
    """The bits of the elements, of the tensor's shape and in row order; a copy if they lie otherwise in memory."""
    return tensor.detach().contiguous().view(_INTEGER[tensor.dtype]).numpy()


def run(loop: Callable[..., object], blocks: Iterable[tuple[Any, ...]]) -> None:
    """Calls `loop` with the arguments of each block, by as many threads as torch has.

    The loops let go of Python's lock; the caller's thread takes its share.
    """
    waiting = deque(blocks)

    def work() -> None:
        while True:
            try:
                block = waiting.popleft()
            except IndexError:
                return
            loop(*block)

    threads = min(torch.get_num_threads(), len(waiting))
    others = [_pool(torch.get_num_threads()).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    """Threads that wait, as starting one costs as much as a small pair. numba's own would spin beside torch's."""
    return ThreadPoolExecutor(threads, thread_name_prefix="sweeper-metrics")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not live on in a forked process
