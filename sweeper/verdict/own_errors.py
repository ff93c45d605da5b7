"""What every module does by itself: its output on the reference's own arguments, against what rounding in it can cost.

The outputs of a model hide what one module does, and the float64 replay hides code that follows the dtype of what it is
given. So each module of the candidate, composite ones and the model itself too, is run on the arguments that the
reference's had, natively. What lies many of its own floors away from the reference's output, and is gone in float64, is
no rounding, whatever the outputs say.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sweeper.comparator.observation import wide_window_bytes
from sweeper.comparator.side import POOLING, Outputs, Side
from sweeper.devices import suppressed
from sweeper.verdict.causes.arguments import arguments_undone
from sweeper.verdict.examination import Examination, Postponed
from sweeper.verdict.float64_replay import attention, attention_implementation, replayed
from sweeper.verdict.known_errors import KnownErrors
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_floor import Noise, distance, one_must_reach
from sweeper.verdict.module_runs import Captured, Kept, Key, capture
from sweeper.verdict.output_floors import OutputFloors
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.repeatability import same_outputs
from sweeper.verdict.state_changes import Provenance
from sweeper.verdict.thresholds import KERNEL_MULTIPLE, OWN_MULTIPLE


class Natively:
    """Finds what a module does natively and not in float64, on the reference's own arguments.

    Args:
        names: of the modules that are asked for; None: all.
        evidence: of the reference; None: none yet.
        expected: what the candidate gave before, to be compared with what it gives as it is examined, where it draws
            other numbers; None: it is not compared.
        floors: of the outputs, whose runs tell that of what is most of the model, too; None: it is run for its own.
        full: measure all floors to the end; else only as far as something depends on them.

    Attributes:
        repeats: whether the candidate gave what was expected, in the first of its runs; None: not known.
    """

    repeats: bool | None = None

    def __init__(
        self,
        reference: Side,
        candidate: Side,
        found: Provenance,
        names: set[str] | None = None,
        *,
        evidence: ReferenceEvidence | None = None,
        expected: Outputs | None = None,
        floors: OutputFloors | None = None,
        full: bool = True,
    ) -> None:
        self._floors = floors
        self._reference, self._candidate, self._found, self._full = reference, candidate, found, full
        self._expected = expected
        backends = [attention_implementation(side.model) for side in (reference, candidate)]
        self._same_backend = backends[0] == backends[1]
        self._kernels = set(backends) - {None, "eager"}
        asked = None if names is None else frozenset(names)
        self._evidence = evidence or ReferenceEvidence()
        self._first = self._evidence.once(reference, ("kept", asked), lambda: self._captured(reference, names))

    @property
    def reference_chooses(self) -> bool:
        """Whether something in the reference chooses by comparing numbers, so that rounding can flip it."""
        return self._first.chooses

    def _captured(self, side: Side, names: set[str] | None = None, calls: Mapping[str, int] | None = None) -> Captured:
        """What modules of a side were given and gave; those that find no room take another run of both sides.

        Args:
            names, calls: as in `capture`.
        """
        device = side.calls[0].forward.flat_N.device.type
        return capture(side, names, calls=calls, most_bytes=wide_window_bytes(device, lasting=calls is None))

    def _parts(self, names: set[str] | None) -> Iterator[dict[Key, Kept]]:
        """What the reference's modules of these names were given and gave, as many at a time as are kept at once."""
        kept, left = self._first.kept, self._first.left
        if names is not None:
            kept = {key: call for key, call in kept.items() if key[1] in names}
            left = {name: calls for name, calls in left.items() if name in names}
        if kept or not left:
            yield kept
        while left:
            del kept
            captured = self._captured(self._reference, calls=left)
            kept, left = captured.kept, captured.left
            del captured
            yield kept

    def examine(self, names: set[str] | None = None) -> dict[str, OwnError]:
        """Own error and floor of each module, the floor where it matters; the model itself has the empty name."""
        same, eps = self._same_conditions(), self._state_eps()
        noise = Noise(state_eps=eps, products_only=same, inputs=not same)
        postponed: dict[Key, Postponed] = {}
        first = self._run(self._candidate, noise, names, expected=self._expected, postponed=postponed)
        self._add_postponed(first, postponed, noise)
        far = _far(first)
        if not far:
            return first
        floors = self._run(self._reference, Noise(inputs=not same), far, all_floors=True, errors=first)
        for name in far & floors.keys():
            first[name] = replace(first[name], floor=max(first[name].floor, floors[name].floor))
        return first

    def _add_postponed(self, found: dict[str, OwnError], postponed: dict[Key, Postponed], noise: Noise) -> None:
        """Gives the postponed calls their floors: by the run that measures that of the outputs, or where that does not
        suffice by runs of their modules alone; what then does not run is not judged.

        Args:
            found: the worst of all calls of each module, those with a floor first; changed.
            postponed: used up.
        """
        if self._floors is None or not postponed:
            return
        moved: dict[Key, float] = {}
        with suppressed(Exception):  # a foreign model that refuses what was nudged
            moved = self._floors.modules(self._most_gave, {key: one.output for key, one in postponed.items()})
        errors = [replace(one.found, floor=moved.get(key, 0.0)) for key, one in postponed.items()]
        postponed.clear()  # outputs of the whole model
        short = {one.name for one in errors if one.floor < one_must_reach(one.own / OWN_MULTIPLE)}
        for one in errors:
            if one.name not in short and one.worse_than(found[one.name]):
                found[one.name] = one
        again = self._run(self._candidate, noise, short) if short else {}
        for name in short:
            if name in again:
                found[name] = again[name]
            else:
                del found[name]

    def _most_gave(self) -> dict[Key, list[Tensor | None]]:
        """What the reference and the modules that are most of it gave."""
        most = most_of(self._reference)
        return {key: call.output for key, call in self._first.kept.items() if key[1] in most}

    def operations_floor(self) -> float:
        """The floor of the model itself, of the noisier side; NaN where it runs on no one else's arguments."""
        noise = Noise(state_eps=self._state_eps(), inputs=not self._same_conditions())
        noises = (self._reference, replace(noise, state_eps=0.0)), (self._candidate, noise)
        found = [self._run(side, one, {""}, all_floors=True) for side, one in noises]
        return max((own[""].floor for own in found if "" in own), default=math.nan)

    def beyond(self, examined: dict[str, OwnError]) -> tuple[OwnError, ...]:
        """Those that lie too many floors up, and in float64 nowhere near; no kernels that are as exact as eager."""
        far = _far(examined)
        if not far:
            return ()
        replays = self._replayed(far)
        natively = [
            replace(one, replayed=replays[name].own)
            for name, one in examined.items()
            if name in far and name in replays and replays[name].own * OWN_MULTIPLE <= one.own
        ]
        if not natively or not self._kernels:
            return tuple(natively)
        checked = [self._against_eager(one) for one in natively]
        return tuple(one for one in checked if one.kernel is None or one.kernel > KERNEL_MULTIPLE)

    def _run(
        self,
        side: Side,
        noise: Noise | None,
        names: set[str] | None,
        *,
        all_floors: bool = False,
        errors: Mapping[str, OwnError] | None = None,
        expected: Outputs | None = None,
        postponed: dict[Key, Postponed] | None = None,
    ) -> dict[str, OwnError]:
        """What is found of a side's modules of these names.

        Args:
            postponed: takes the calls without a floor; None: there are none. Others as in `Examination`.
        """
        found: dict[str, OwnError] = {}
        order: dict[str, None] = {}
        known = self._known(noise) if side is self._candidate and not all_floors else None
        postpone = most_of(side) if postponed is not None and self._floors is not None else frozenset[str]()
        runs = side if expected is None else replace(side, seed=side.seed + 1)
        for kept in self._parts(names):
            examination = Examination(
                kept,
                self._reference.calls,
                noise,
                same_backend=self._same_backend or side is self._reference,
                all_floors=all_floors,
                decisive=not self._full and (not all_floors or errors is not None),
                errors=errors,
                known=known,
                postpone=postpone,
            )
            first = not order
            found |= examination.run(runs, names if first else {key[1] for key in kept}, to_its_end=first).found
            order = order or examination.order
            if postponed is not None:
                postponed |= examination.postponed
            if first and expected is not None:
                outputs = {name: output for name, output in expected.items() if name != POOLING}
                self.repeats = same_outputs(outputs, examination.gave)
            del kept, examination  # let go of before the next ones come
        return {name: found[name] for name in order if name in found}

    def _known(self, noise: Noise | None) -> KnownErrors | None:
        """What other candidates with these weights and conditions have shown; None where the weights are not known."""
        weights = self._candidate.weights
        if weights is None:
            return None
        left, right = self._conditions()
        state = self._found
        differs = state.asked or state.rounded or state.other or state.missing or state.quantised or not state.exact
        same = left == right and not differs
        what = "known errors", weights, tuple(right.items()), noise, self._full
        return self._evidence.once(self._reference, what, lambda: KnownErrors(same=same))

    def _same_conditions(self) -> bool:
        """Whether the candidate's own rounding explains nothing that the reference's does not."""
        left, right = self._conditions()
        casts = arguments_undone(*self._sides, self._found) is not self._candidate
        return self._same_backend and left == right and self._found.coarser is None and not casts

    def _conditions(self) -> tuple[dict[str, Any], dict[str, Any]]:
        left, right = ({name: switch.value for name, switch in side.switches.items()} for side in self._sides)
        return left, right

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._reference, self._candidate

    def _state_eps(self) -> float:
        return torch.finfo(self._found.coarser).eps if self._found.coarser else 0.0

    def _replayed(self, names: set[str]) -> dict[str, OwnError]:
        """Own errors in float64 with the state as it was loaded: what storing it in another dtype costs is in there."""
        found: dict[str, OwnError] = {}
        left: Mapping[str, int] | None = None
        while left is None or left:
            with replayed(self._reference) as (side, _):
                captured = self._captured(side, names, left)
            with replayed(self._candidate) as (side, _):
                kept, calls = captured.kept, self._reference.calls
                examination = Examination(kept, calls, None, same_backend=self._same_backend)
                in_one = left is None and not captured.left
                found |= examination.run(side, {key[1] for key in kept}, to_its_end=in_one).found
            left = captured.left
            del captured, kept, examination  # let go of before the next ones come
        return found

    def _against_eager(self, one: OwnError) -> OwnError:
        """The kernel's error over eager's, where eager attention in the same precision does what the reference does."""
        candidate, names = self._candidate, {one.name}
        kept = next(self._parts(names))

        def outputs(side: Side) -> Examination:
            examination = Examination(kept, self._reference.calls, None, same_backend=False, keep=True)
            return examination.run(side, names)

        kernel = outputs(candidate)
        with attention(candidate.model, "eager"):
            eager = outputs(candidate)
        with replayed(candidate) as (side, _):
            exact = outputs(side)
        shared = [key for key in kernel.outputs if key in eager.outputs and key in exact.outputs]
        close = one.name in eager.found and eager.found[one.name].own <= OWN_MULTIPLE * one.floor
        if not shared or not close:
            return one
        errors = [max(self._error(ran, exact, key) for key in shared) for ran in (kernel, eager)]
        return replace(one, kernel=errors[0] / errors[1] if errors[1] else math.inf)

    def _error(self, ran: Examination, exact: Examination, key: Key) -> float:
        return distance(exact.outputs[key], ran.outputs[key], self._reference.calls[key[0]]) or 0.0


def most_of(side: Side) -> frozenset[str]:
    """Names of the modules that hold most of the others, as the model itself: running one takes as long."""
    half = len(list(side.model.modules())) / 2
    inner = {path: module for path, module in side.model.named_modules() if any(module.children())}
    paths = [path for path, module in inner.items() if len(list(module.modules())) > half]
    return frozenset(side.names.get(path, path) if path else "" for path in paths)


def _far(errors: Mapping[str, OwnError]) -> set[str]:
    """Names of the modules that lie too many of their floors up."""
    return {name for name, one in errors.items() if one.floors > OWN_MULTIPLE}
