"""Which fast code serves a device, where there is any, and what it keeps from launch to launch: tables of addresses on
the device, and partials to be joined.
"""

from __future__ import annotations

import functools
import importlib
import logging
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sweeper.devices import to_device
from sweeper.metrics.sums import State

_LOGGER = logging.getLogger(__name__)


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
    except ImportError as error:
        _say_slower(device, str(error))
        return None
    return None


@functools.cache
def _say_slower(device: str, reason: str) -> None:
    """One line, once."""
    package = "numba (or 'sweeper[cpu]')" if device == "cpu" else "triton"
    _LOGGER.warning("measuring takes longer than it need (%s): pip install %s", reason, package)


class Measured(NamedTuple):
    """Pairs' partials, which are still to be added to their states; S pairs.

    Attributes:
        states: S of them.
        partials: of each launch, [fields, partials].
        shares_S5: each pair's launch, the first of its partials there and their number, N and F.
    """

    states: list[State]
    partials: list[Tensor]
    shares_S5: np.ndarray


class Tables:
    """Addresses on the device, a launch after the other.

    A slot whose addresses are those of the time before, as when batches repeat a shape, is not sent again.

    Attributes:
        measured: what is still to be joined, in order.
        measured_bytes: of its partials.
        sent: each slot's numbers, and where they are on the device.
    """

    def __init__(self) -> None:
        self.measured: list[Measured] = []
        self.measured_bytes = 0
        self.sent: list[tuple[np.ndarray, Tensor]] = []
        self._slot = 0

    def rewind(self) -> None:
        """The next launch is the first of a batch; what was not joined of the one before is forgotten."""
        self.measured, self.measured_bytes, self._slot = [], 0, 0

    def place(self, numbers: np.ndarray, device: torch.device) -> Tensor:
        """The numbers on the device, int64, in one row. Nobody may write to the array any more."""
        slot, self._slot = self._slot, self._slot + 1
        if slot < len(self.sent) and np.array_equal(self.sent[slot][0], numbers):
            return self.sent[slot][1]
        table = self.send(slot, numbers, device)
        self.sent[slot : slot + 1] = [(numbers, table)]
        return table

    def send(self, slot: int, numbers: np.ndarray, device: torch.device) -> Tensor:
        """The numbers on the device, for the first time."""
        return to_device(numbers, device)
