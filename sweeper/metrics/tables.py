"""Tables of addresses that the fused kernels read, on the device, and sent only when they change."""

from __future__ import annotations

import torch
from torch import Tensor


class Tables:
    """Addresses on the device, a launch after the other.

    A slot whose addresses are those of the time before, as when batches repeat a shape, is not sent again. While a CUDA
    graph is captured nothing is sent: call `upload` before its first replay.
    """

    def __init__(self) -> None:
        self._sent: list[tuple[list[int], Tensor]] = []
        self._late: list[tuple[Tensor, list[int]]] = []
        self._slot = 0

    def rewind(self) -> None:
        """The next launch is the first of a batch."""
        self._slot = 0

    def place(self, numbers: list[int], device: torch.device) -> Tensor:
        """The numbers on the device, int64."""
        slot, self._slot = self._slot, self._slot + 1
        if slot < len(self._sent) and self._sent[slot][0] == numbers:
            return self._sent[slot][1]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            table = torch.empty(len(numbers), dtype=torch.int64, device=device)
            self._late.append((table, numbers))
        else:
            table = _sent(numbers, device)
        self._sent[slot : slot + 1] = [(numbers, table)]
        return table

    def upload(self) -> None:
        """Sends what a capture held back."""
        for table, numbers in self._late:
            table.copy_(torch.tensor(numbers))
        self._late.clear()


def _sent(numbers: list[int], device: torch.device) -> Tensor:
    # From pinned memory the copy is asynchronous; torch frees it when the copy is done.
    return torch.tensor(numbers, pin_memory=device.type == "cuda").to(device, non_blocking=True)
