"""The floors of both sides' outputs, as far as they decide; and what the same runs tell of the modules in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sweeper.comparator.side import Outputs, Side, run, uncompiled_side
from sweeper.inputs.calls import Call
from sweeper.verdict.module_floor import distance
from sweeper.verdict.module_runs import Key, Watch, floats
from sweeper.verdict.noise_floor import Floor, output_floor_sample, raise_floor
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.state_changes import Provenance

Gave = Mapping[Key, list[Tensor | None]]
"""What calls of modules gave in a run of their side."""


class OutputFloors:
    """Runs either side under nudges, no more often than is needed; the one with the coarser dtype first.

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
        self._candidates = Floor()
        self._sides = [reference, candidate]
        if found.coarser is None:  # the dtype may be that of the outputs, under autocast
            coarser_candidate = _eps(native) > _eps(base)
        else:
            coarser_candidate = found.coarser is found.candidate_dtype
        if coarser_candidate:
            self._sides.reverse()

    def reach(self, enough: float) -> Floor:
        """The larger floor of the outputs, as far as it takes to reach `enough`."""
        floors = []
        for side in self._sides:
            floors.append(self._floor(side))
            if raise_floor(floors[-1], uncompiled_side(side), self._outputs(side), enough):
                break
        return max(floors, key=lambda floor: floor.level)

    def modules(self, reference: Gave, candidate: Gave) -> dict[Key, float]:
        """How far the first nudges move what modules give, rel_l2, of the side that comes first.

        Args:
            reference, candidate: what the modules of each gave by themselves, on the same arguments.
        """
        side = self._sides[0]
        if side is self._candidate:
            return self._moved(side, candidate)
        # all of the reference's, whichever one candidate asks for
        return self._evidence.once(side, "nudged modules", lambda: self._moved(side, reference))

    def _moved(self, side: Side, gave: Gave) -> dict[Key, float]:
        written, moved = uncompiled_side(side), _Moved(gave, self._reference.calls)
        with moved.watch.on(written, moved.names):
            sample = output_floor_sample(written, self._outputs(side), seed=0, listener=moved.watch)
        if not (floor := self._floor(side)).nudged:
            floor.nudged.append(sample)
        return moved.found

    def _floor(self, side: Side) -> Floor:
        if side is self._candidate:
            return self._candidates
        return self._evidence.once(side, "floor of outputs", Floor)

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
