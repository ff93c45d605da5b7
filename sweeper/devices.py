"""What concerns a device as a whole: its free memory and the lack of it, waiting, integers sent without waiting."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

# what torch says where it raises a plain RuntimeError: the host's allocator, and libraries that want a workspace
_NO_MEMORY = ("DefaultCPUAllocator", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED", "CUDA out of memory")
_BLOCK = 2**17  # numbers, 1 MiB: pinning memory takes longer than most copies


class _Staging:
    """Hands out pieces of pinned memory, each once. torch frees a block when the copies from it are done."""

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.int64)  # not pinned: importing this must not start a GPU
        self._numbers = self._block.numpy()  # writing through it takes a third of the host time of `copy_`
        self._used = 0

    def _start_anew(self, size: int) -> None:
        with torch.inference_mode(False):  # a tensor of that mode could not be written to outside of it
            self._block = torch.empty(size, dtype=torch.int64, pin_memory=torch.cuda.is_available())
        self._numbers, self._used = self._block.numpy(), 0

    def keep_for_ever(self) -> None:
        """Where the device refuses everything, giving pinned memory back raises in C++, which ends the process."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._block))

    def put(self, numbers: np.ndarray) -> Tensor:
        """A copy in pinned memory (plain memory where there is no GPU)."""
        if self._used + numbers.size > len(self._block):
            self._start_anew(max(numbers.size, _BLOCK))
        start, self._used = self._used, self._used + numbers.size
        self._numbers[start : self._used] = numbers.ravel()
        return self._block[start : self._used].view(numbers.shape)


_staging = _Staging()


def to_device(numbers: Sequence[int] | np.ndarray, device: torch.device | str) -> Tensor:
    """An int64 tensor on the device. A copy from pageable memory would wait for all that the device has to do."""
    array = np.asarray(numbers, dtype=np.int64)
    if torch.device(device).type != "cuda":
        return torch.from_numpy(array)
    return _staging.put(array).to(device, non_blocking=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on the device or on the host: that is never a fact about a model."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _NO_MEMORY)


def usable(device: str) -> bool:
    """Whether the device still answers. After an assertion or an illegal address in a kernel, CUDA refuses all that the
    process asks for, until its end."""
    if device != "cuda":
        return True
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        if out_of_memory(error):
            return True
        _staging.keep_for_ever()
        return False
    return True


@contextlib.contextmanager
def suppressed(*errors: type[Exception]) -> Iterator[None]:
    """`contextlib.suppress`, which lets running out of memory pass."""
    try:
        yield
    except errors as error:
        if out_of_memory(error):
            raise


def free_bytes(device: str) -> int:
    """What may still be taken; on a GPU with what torch's allocator holds without using it."""
    if device == "cuda":
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused
    import psutil

    return min(int(psutil.virtual_memory().available), _left_in_container())


def _left_in_container() -> int:
    """What a container's limit leaves, which psutil does not see; of Linux's control groups, version 2."""
    limit, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if not limit.is_file() or limit.read_text().strip() == "max":
        return sys.maxsize
    return int(limit.read_text()) - int(used.read_text())


def synchronize(device: str) -> None:
    """Waits for the device, so that a host clock read next means something."""
    if device == "cuda":
        torch.cuda.synchronize()
