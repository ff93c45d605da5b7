"""A reference and its candidates side by side: all forwards run in turns, and an output dies when it has been compared.

The reference runs until it has given a bounded number of bytes, then each candidate until it needs what the reference
has not given yet, and so on. Each side is a greenlet, so that a turn can end inside a hook, wherever the model is: this
asks nothing of the models. Against threads with a baton it needs no locks, keeps one CUDA stream and one set of
torch's thread-local modes, and can be captured in a CUDA graph.

What waits is bounded where all sides run their modules in one order and share a batch out among calls alike. Where one
runs each text alone and another all at once, one of them has to be kept for a whole batch.
"""

from __future__ import annotations

import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import torch
from greenlet import getcurrent, greenlet
from torch import nn

from sweeper.comparator.hooks import ModuleOutput
from sweeper.comparator.module_pairs import ModulePairs
from sweeper.models.copying import copied_model
from sweeper.models.swapping import Source, sharing_parameter

# Bytes of the reference's outputs in one turn; with the candidate's, what fills a launch (`module_pairs.py`). On a CPU,
# what waits is to be in the caches still.
_TURN_BYTES = {"cuda": 2**29, "cpu": 2**24}
_A_GROUP = 4  # candidates in one context

Turn = Callable[[], AbstractContextManager[object]]
"""Makes the context of a turn: what is global in torch and the other side does not share."""
R = TypeVar("R")
C = TypeVar("C")


def bytes_a_turn(device: str) -> int:
    """Bytes of the reference's outputs that a turn gives on this device."""
    return _TURN_BYTES[device]


class InStep:
    """Runs a reference and candidates in turns, whose modules' outputs meet in pairs: hook them with `give` and `take`.

    Args:
        pairs: where the outputs meet, one a candidate.
        steady: outputs of the reference that no later module overwrites; the others are copied.
        conditions: make the contexts of the reference's turns and of each candidate's; empty: none. Candidates that
            have the same one take their turns behind one another, in one context: there are thousands of turns, and to
            set all that is global takes longer than to change sides.
        turn_bytes: of the reference's outputs in one turn; at least one output is given, whatever its size.
    """

    def __init__(
        self,
        pairs: Sequence[ModulePairs],
        *,
        steady: Container[str] = frozenset(),
        conditions: Sequence[Turn] = (),
        turn_bytes: int,
    ) -> None:
        self._pairs = pairs
        self._steady = steady
        self._conditions = conditions or [nullcontext] * (1 + len(pairs))
        self._turn_bytes = turn_bytes
        self._given = 0
        self._complete = False
        self._running: set[int] = set()

    def give(self, output: ModuleOutput) -> None:
        """Takes an output of the reference, and its turn when it has given enough."""
        reference_NF = output.lasting(self._steady)
        for place in self._running:
            self._pairs[place].give(output.name, reference_NF)
        self._given += reference_NF.nbytes
        if self._given >= self._turn_bytes:
            _switch(getcurrent().parent)

    def take(self, place: int, output: ModuleOutput) -> None:
        """Compares an output of the candidate in that place, once the reference has given its rows or has ended."""
        while not self._pairs[place].take(output, more_may_come=not self._complete):
            _switch(getcurrent().parent)

    def run(
        self,
        reference: Callable[[], R],
        candidates: Mapping[int, Callable[[], C]],
        ended: Callable[[int, R, C | Exception], object] = lambda _place, _given, _taken: None,
    ) -> tuple[R, dict[int, C | Exception]]:
        """Runs all to their ends.

        An error of the reference ends all others where they are, and is raised. One of a candidate is what that one
        gives; the others go on.

        Args:
            candidates: by their places, in the order of their turns.
            ended: is called for each candidate, outside of all conditions, once it and the reference are at their ends.
                A GPU still computes what others have asked of it meanwhile.
        """
        first, others = greenlet(reference), {place: greenlet(run) for place, run in candidates.items()}
        given: Any = None
        results: dict[int, Any] = {}
        groups = self._groups(candidates)
        self._complete, self._running, going = False, set(candidates), set(candidates)
        try:
            while not (first.dead and all(side.dead for side in others.values())):
                if not first.dead:
                    self._given = 0
                    with self._conditions[0]():
                        given = _switch(first)
                    self._complete = first.dead
                for condition, places in groups:
                    self._turns(condition, {place: others[place] for place in places}, results)
                    for place in places if self._complete else ():
                        if place in going and others[place].dead:
                            going.remove(place)
                            ended(place, given, results[place])
        finally:
            for side in (first, *others.values()):
                if side:  # suspended in its forward by an error of another
                    side.throw()
        return given, results

    def _groups(self, candidates: Iterable[int]) -> list[tuple[Turn, list[int]]]:
        """Who takes turns in one context; a few each, so that what has ended is looked at before all have."""
        together: defaultdict[Turn, list[int]] = defaultdict(list)
        for place in candidates:
            together[self._conditions[1 + place]].append(place)
        starts = (
            (turn, places, start) for turn, places in together.items() for start in range(0, len(places), _A_GROUP)
        )
        return [(turn, places[start : start + _A_GROUP]) for turn, places, start in starts]

    def _turns(self, condition: Turn, sides: Mapping[int, greenlet], results: dict[int, Any]) -> None:
        """A turn of each side that is not at its end. An error ends its side, and passes through the context, which may
        tell it in other words; the sides behind it have a context of their own."""
        waiting = deque(place for place, side in sides.items() if not side.dead)
        while waiting:
            place = waiting.popleft()
            try:
                with condition():
                    results[place] = _switch(sides[place])
                    while waiting:
                        place = waiting.popleft()
                        results[place] = _switch(sides[place])
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # which hold what its model had made
                if not sides[place].dead:  # of the context itself: the side would be waited for, for ever
                    sides[place].throw()
                self._running.discard(place)
                self._pairs[place].drop()
                results[place] = error


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
    own: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    own |= {id(one): sharing_parameter(one) for one in model.parameters() if Source.of(one) is not None}
    return copied_model(model, own)
