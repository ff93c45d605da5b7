"""Integers from the host to a device without waiting for what runs there, so that the host stays ahead of it."""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 2**17  # numbers, 1 MiB: pinning memory takes longer than most copies


class _Staging:
    """Hands out pieces of pinned memory, each once. torch frees a block when the copies from it are done."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.int64)

    def put(self, numbers: Tensor) -> Tensor:
        """A copy in pinned memory (plain memory where there is no GPU)."""
        size = numbers.numel()
        if size > len(self._left):
            with torch.inference_mode(False):  # else nothing could be written outside of it
                pinned = torch.cuda.is_available()
                self._left = torch.empty(max(size, _BLOCK), dtype=torch.int64, pin_memory=pinned)
        piece, self._left = self._left[:size], self._left[size:]
        return piece.view(numbers.shape).copy_(numbers)


_staging = _Staging()


def to_device(numbers: Tensor, device: torch.device | str) -> Tensor:
    """The int64 tensor on the device. A copy from pageable memory would wait for all that the device has to do."""
    if torch.device(device).type != "cuda":
        return numbers.to(device)
    return _staging.put(numbers).to(device, non_blocking=True)
