"""What the fused kernels keep from launch to launch: tables of addresses on the device, and partials to be joined."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sweeper.devices import to_device
from sweeper.metrics.sums import State


class Measured(NamedTuple):
    """A pair's partials, which are still to be added to the state."""

    state: State
    partials: Tensor  # of the whole launch, [fields, partials]
    first: int
    number: int
    N: int
    F: int


class Tables:
    """Addresses on the device, a launch after the other.

    A slot whose addresses are those of the time before, as when batches repeat a shape, is not sent again. While a CUDA
    graph is captured nothing is sent: call `upload` before its first replay.

    Attributes:
        measured: what is still to be joined, in order.
        measured_bytes: of its partials.
    """

    def __init__(self) -> None:
        self.measured: list[Measured] = []
        self.measured_bytes = 0
        self._sent: list[tuple[list[int], Tensor]] = []
        self._late: list[tuple[Tensor, list[int]]] = []
        self._captured: list[tuple[Tensor, list[int]]] = []  # graphs read these as long as they live
        self._slot = 0

    def rewind(self) -> None:
        """The next launch is the first of a batch; what was not joined of the one before is forgotten."""
        self.measured, self.measured_bytes, self._slot = [], 0, 0

    def place(self, numbers: list[int], device: torch.device) -> Tensor:
        """The numbers on the device, int64."""
        slot, self._slot = self._slot, self._slot + 1
        if slot < len(self._sent) and self._sent[slot][0] == numbers:
            return self._sent[slot][1]
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            table = self._known(slot, len(numbers))
            self._late.append((table, numbers))
        else:
            table = to_device(numbers, device)
        self._sent[slot : slot + 1] = [(numbers, table)]
        return table

    def _known(self, slot: int, size: int) -> Tensor:
        """The slot's memory of the time before. Memory of the graph's own would be overwritten in every replay, by what
        used it earlier in the capture."""
        if slot >= len(self._sent) or len(self._sent[slot][1]) != size:
            raise RuntimeError("a batch of the same shape has to run before it is captured in a CUDA graph")
        return self._sent[slot][1]

    def upload(self) -> None:
        """Sends what a capture held back."""
        for table, numbers in self._late:
            table.copy_(torch.tensor(numbers))
        self._captured += self._late
        self._late = []
