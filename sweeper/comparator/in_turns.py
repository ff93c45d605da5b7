"""Reference and candidate side by side: both forwards run in turns, and an output dies when it has been compared.

The reference runs until it has given a bounded number of bytes, then the candidate until it needs what the reference
has not given yet, and so on. Each side is a greenlet, so that a turn can end inside a hook, wherever the model is: this
asks nothing of the models. Against two threads with a baton it needs no locks, keeps one CUDA stream and one set of
torch's thread-local modes, and can be captured in a CUDA graph.

What waits is bounded where both sides run their modules in one order and share a batch out among calls alike. Where one
runs each text alone and the other all at once, one of them has to be kept for a whole batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn

from sweeper.comparator.hooks import ModuleOutput
from sweeper.comparator.module_pairs import ModulePairs
from sweeper.models.swapping import Source, sharing_parameter

# Bytes of the reference's outputs in one turn; with the candidate's, what fills a launch (`module_pairs.py`). On a CPU,
# what waits is to be in the caches still.
_TURN_BYTES = {"cuda": 2**29, "cpu": 2**24}

Turn = Callable[[], AbstractContextManager[object]]
"""Makes the context of a turn: what is global in torch and the other side does not share."""
R = TypeVar("R")
C = TypeVar("C")


def bytes_a_turn(device: str) -> int:
    """Bytes of the reference's outputs that a turn gives on this device."""
    return _TURN_BYTES[device]


class InStep:
    """Runs two functions in turns, whose modules' outputs meet in `pairs`: hook them with `give` and `take`.

    Args:
        pairs: where the outputs meet.
        steady: outputs of the reference that no later module overwrites; the others are copied.
        conditions: make the contexts of the reference's turns and of the candidate's.
        turn_bytes: of the reference's outputs in one turn; at least one output is given, whatever its size.
    """

    def __init__(
        self,
        pairs: ModulePairs,
        *,
        steady: Container[str] = frozenset(),
        conditions: tuple[Turn, Turn] = (nullcontext, nullcontext),
        turn_bytes: int,
    ) -> None:
        self._pairs = pairs
        self._steady = steady
        self._conditions = conditions
        self._turn_bytes = turn_bytes
        self._given = 0
        self._complete = False

    def give(self, output: ModuleOutput) -> None:
        """Takes an output of the reference, and its turn when it has given enough."""
        reference_NF = output.lasting(self._steady)
        self._pairs.give(output.name, reference_NF)
        self._given += reference_NF.nbytes
        if self._given >= self._turn_bytes:
            _switch(getcurrent().parent)

    def take(self, output: ModuleOutput) -> None:
        """Compares an output of the candidate, once the reference has given its rows or has ended."""
        while not self._pairs.take(output, more_may_come=not self._complete):
            _switch(getcurrent().parent)

    def run(self, reference: Callable[[], R], candidate: Callable[[], C]) -> tuple[R, C]:
        """Runs both to their ends. An error of one ends the other where it is."""
        first, second = greenlet(reference), greenlet(candidate)
        results: Any = [None, None]
        self._complete = False
        try:
            while not (first.dead and second.dead):
                if not first.dead:
                    self._given = 0
                    with self._conditions[0]():
                        results[0] = _switch(first)
                    self._complete = first.dead
                if not second.dead:
                    with self._conditions[1]():
                        results[1] = _switch(second)
        finally:
            for side in (first, second):
                if side:  # suspended in its forward by an error of the other
                    side.throw()
        return results[0], results[1]


_AUTOCAST_DEVICES = ("cpu", "cuda")


def _switch(target: greenlet) -> Any:
    """Runs the target until it switches back. What a model had switched around this place (transformers turns autocast
    off around some operations) is then as it was: the state belongs to the thread, which both sides share."""
    state = [
        (device, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) for device in _AUTOCAST_DEVICES
    ]
    try:
        return target.switch()
    finally:
        for device, enabled, dtype in state:
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


def twin(model: nn.Module) -> nn.Module:
    """A model of its own, with an attention backend of its own, on the same parameters and buffers; what is streamed
    comes and goes on each side for itself."""
    own: dict[int, Tensor] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    own |= {id(one): sharing_parameter(one) for one in model.parameters() if Source.of(one) is not None}
    return copy.deepcopy(model, own)
