"""The floors of both sides' outputs, as far as they decide; and what the same runs tell of the modules in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sweeper.comparator.side import Outputs, Side, run, uncompiled_side
from sweeper.inputs.calls import Call
from sweeper.verdict.module_floor import distance
from sweeper.verdict.module_runs import Key, Watch, floats
from sweeper.verdict.noise_floor import Floor, at_least, output_floor_sample, raise_floor
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.state_changes import Provenance

Gave = Mapping[Key, list[Tensor | None]]
"""What calls of modules gave in a run of their side."""


class OutputFloors:
    """Runs either side under nudges, no more often than is needed; the one with the coarser dtype first.

    Its first run nudges only what is sure to be rounded (`nudged`), and tells of modules too.

    Args:
        found: what differs in their state.
        evidence: of the reference.
        base, native: what the reference and the candidate gave by themselves.
    """

    def __init__(
        self,
        reference: Side,
        candidate: Side,
        found: Provenance,
        evidence: ReferenceEvidence,
        base: Outputs,
        native: Outputs,
    ) -> None:
        self._reference, self._candidate, self._evidence = reference, candidate, evidence
        self._gave = {id(reference): base, id(candidate): native}
        self._written: dict[int, Outputs] = {}  # the same of compiled code, as it is written
        self._first: float | None = None  # how far the first run moved the outputs
        self._sides = [reference, candidate]
        if found.coarser is None:  # the dtype may be that of the outputs, under autocast
            coarser_candidate = _eps(native) > _eps(base)
        else:
            coarser_candidate = found.coarser is found.candidate_dtype
        if coarser_candidate:
            self._sides.reverse()

    def reach(self, enough: float) -> Floor:
        """The larger floor of the outputs, as far as it takes to reach `enough`."""
        if at_least(first := Floor(nudged=[self._sample()])) >= enough:
            return first
        floors = []
        for side in self._sides:
            is_reference = side is self._reference
            floors.append(self._evidence.once(side, "floor of outputs", Floor) if is_reference else Floor())
            if raise_floor(floors[-1], uncompiled_side(side), self._outputs(side), enough):
                break
        return max(floors, key=lambda floor: floor.level)

    def modules(self, reference: Callable[[], Gave], candidate: Gave) -> dict[Key, float]:
        """How far the first run moves what modules give, rel_l2, of the side that comes first; by calls.

        Args:
            reference, candidate: what the modules of each gave by themselves, on the same arguments.
        """
        side = self._sides[0]
        if side is self._candidate:
            self._first, moved = self._nudged(side, candidate)
        else:  # all of the reference's, whichever one candidate asks for
            known = self._evidence.once(side, "sure nudges", lambda: self._nudged(side, reference()))
            self._first, moved = known
        return moved

    def _sample(self) -> float:
        """How far the first run moves the outputs; it is made for that alone where it was not yet."""
        if self._first is not None:
            return self._first
        side = self._sides[0]
        if side is self._candidate:
            return self._nudged(side, {})[0]
        known = self._evidence.known(side, "sure nudges")
        return known[0] if known else self._evidence.once(side, "sure nudge", lambda: self._nudged(side, {})[0])

    def _nudged(self, side: Side, gave: Gave) -> tuple[float, dict[Key, float]]:
        written, moved = uncompiled_side(side), _Moved(gave, self._reference.calls)
        with moved.watch.on(written, moved.names):
            sample = output_floor_sample(written, self._outputs(side), seed=0, sure=True, listener=moved.watch)
        return sample, moved.found

    def _outputs(self, side: Side) -> Outputs:
        """What the side gave by itself, its code as it is written."""
        written = uncompiled_side(side)
        if written is not side and id(side) not in self._written:
            self._written[id(side)] = run(written)
        return self._written.get(id(side), self._gave[id(side)])


class _Moved:
    """Listens to a run under nudges.

    Args:
        gave: without them.
        calls: of the model.

    Attributes:
        found: how far what was given lies from that.
    """

    def __init__(self, gave: Gave, calls: Sequence[Call]) -> None:
        self._gave, self._calls = gave, calls
        self.found: dict[Key, float] = {}
        self.names = {name for _, name, _ in gave}
        self.watch = Watch(lambda *_: None, self._after)

    def _after(self, key: Key, output: Any) -> None:
        if key in self._gave:
            given = floats(output, lambda tensor: tensor)
            self.found[key] = distance(self._gave[key], given, self._calls[key[0]]) or 0.0


def _eps(outputs: Outputs) -> float:
    """The machine epsilon of the coarsest output."""
    dtypes = [tensor.dtype for tensor in outputs.values() if tensor.is_floating_point()]
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
