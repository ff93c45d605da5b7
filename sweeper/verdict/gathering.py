"""The figures behind a verdict, in the order of their price: the replay, modules alone, the floor, then what excuses.

All of them where everything is asked for. Else each only where those before leave the kind of the verdict open; what
was not run is said.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from sweeper.comparator.outputs import aside
from sweeper.comparator.side import Outputs, Side, run
from sweeper.devices import out_of_memory
from sweeper.verdict.causes.arguments import cast_arguments
from sweeper.verdict.compiled_code import compiled_code
from sweeper.verdict.computed_state import computed_modules
from sweeper.verdict.discrete_choices import choices_of, flipped, run_with_choices, run_with_selections
from sweeper.verdict.first_divergence import Trace, nonfinite, outputs_rel_l2
from sweeper.verdict.first_run import FirstRun
from sweeper.verdict.float64_replay import attention, attention_implementation
from sweeper.verdict.measured import Measured, OwnError
from sweeper.verdict.noise_floor import Floor, measure_floor
from sweeper.verdict.output_floors import OutputFloors
from sweeper.verdict.own_errors import Natively
from sweeper.verdict.quantisation import kernel_share, without_quantisation
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.repeatability import SIDES, training_modules
from sweeper.verdict.replays import Replays
from sweeper.verdict.state_changes import Provenance
from sweeper.verdict.thresholds import FLOOR_MULTIPLE

_ALL_BUT_REPLAY = ("noise floor", "modules on the reference's arguments", "flipped choices")


@dataclass
class Gathered:
    """What was gathered: attributes as in `Compared`.

    Attributes:
        repeats: whether the candidate gave its outputs once more as its modules were examined; None: it did not run.
    """

    measured: Measured
    replay_trace: Trace | None = None
    floor: Floor = field(default_factory=Floor)
    own: dict[str, OwnError] = field(default_factory=dict)
    repeats: bool | None = None


def gather(
    ran: FirstRun, found: Provenance, evidence: ReferenceEvidence, *, full: bool, known_to_repeat: bool = True
) -> Gathered:
    """The figures of two sides that differ.

    Args:
        found: what differs in their state.
        evidence: of the reference.
        full: everything; else only what the kind of the verdict depends on.
        known_to_repeat: the candidate is; else `Gathered.repeats` is looked for.
    """
    return Gathering(ran, found, evidence, full=full, known_to_repeat=known_to_repeat).gather()


class Gathering:
    """Gathers; see `gather`."""

    def __init__(
        self, ran: FirstRun, found: Provenance, evidence: ReferenceEvidence, *, full: bool, known_to_repeat: bool
    ) -> None:
        self._reference, self._candidate = ran.sides
        self._base, self._native, self._found = ran.base, ran.native, found
        self._evidence, self._full = evidence, full
        self._replays = Replays(*ran.sides, found, evidence, full=full)
        self._figures: dict[str, Any] = {"partly": ran.partly, "uncompared": ran.uncompared, "identical": False}
        self._floor = Floor()
        self._replay_trace: Trace | None = None
        self._own: dict[str, OwnError] = {}
        self._chooses = True  # the reference does, as far as is known
        self._known_to_repeat = known_to_repeat
        self._repeats: bool | None = None

    def gather(self) -> Gathered:
        self._figures |= self._without_runs() | self._compiled()
        if not self._full and any(code.other_function for code in self._figures["compiled"]):
            self._leave_out("replay", *_ALL_BUT_REPLAY)
            return self._gathered()
        if self._full:
            self._figures |= self._whole_floor() | self._flips() | self._quantised()
        try:
            replay, self._replay_trace, truth = self._replays.gather()
            if not replay.collapsed and (computed := computed_modules(self._reference, self._candidate, self._found)):
                self._figures["computed"] = {module.name: module.distance for module in computed}
                replay = replace(replay, computed=self._replays.outside(truth, computed))
            self._figures["replay"] = replay
            self._leave_out(*self._replays.left_out)
            if replay.collapsed:
                self._collapsed(truth)
            elif not self._full:
                self._leave_out(*_ALL_BUT_REPLAY)
        except (
            Exception
        ) as error:  # whatever a foreign model raises in float64 is a fact about the replay, not a failure
            if out_of_memory(error):
                raise
            self._figures["replay_error"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        return self._gathered()

    def _gathered(self) -> Gathered:
        return Gathered(Measured(**self._figures), self._replay_trace, self._floor, self._own, self._repeats)

    def _leave_out(self, *names: str) -> None:
        if names:
            self._figures["left_out"] = (*self._figures.get("left_out", ()), *names)

    def _collapsed(self, truth: Outputs) -> None:
        """Nothing is left in float64: is all else rounding?"""
        native = self._figures["native"]
        if not self._full and (self._figures["nonfinite"] or native == 0):
            self._figures["floor"] = 0.0
            self._leave_out(*_ALL_BUT_REPLAY)
            return
        if native > 0:
            above = native > FLOOR_MULTIPLE * self._floor.level if self._full else False
            with aside(truth):
                located, self._own = self._located(operations=above)
            self._figures |= located
            if not self._full:
                if located.get("beyond"):
                    self._leave_out("noise floor", "flipped choices")
                    return
                self._figures |= self._whole_floor() if self._found.quantised else self._floor_as_needed()
                self._figures |= self._flips() | self._quantised()
                above = native > FLOOR_MULTIPLE * self._floor.level
            if above:
                self._figures |= self._put_back(truth)
                if not self._full:
                    self._figures |= self._operations()

    def _without_runs(self) -> dict[str, Any]:
        """What needs no further run: fields of `Measured`."""
        reference, candidate, found = self._reference, self._candidate, self._found
        cast = cast_arguments(reference, candidate, found)
        base, native = self._base.outputs, self._native.outputs
        return {
            # where no real number differs, what flipped is all that there is
            "native": outputs_rel_l2(base, native, discrete=False) or outputs_rel_l2(base, native),
            "nonfinite": nonfinite(base, native),
            "training": training_counts(reference, candidate),
            "asked": _asked(reference, candidate, found, cast) if found.asked or cast else None,
            "rounded": tuple(sorted(found.rounded)),
            "other": tuple(sorted(found.other)),
            "missing": found.missing,
            "quantised": found.schemes,
        }

    def _compiled(self) -> dict[str, Any]:
        """How far compiled code is off the same code as it is written, of the sides that run some."""
        ours, theirs = SIDES
        reference, outputs = self._reference, self._base.outputs
        found = (
            self._evidence.once(reference, "compiled code", lambda: compiled_code(reference, ours, outputs)),
            compiled_code(self._candidate, theirs, self._native.outputs),
        )
        return {"compiled": tuple(code for code in found if code is not None)}

    @functools.cached_property
    def _floors(self) -> OutputFloors:
        outputs = self._base.outputs, self._native.outputs
        return OutputFloors(self._reference, self._candidate, self._found, self._evidence, *outputs)

    def _whole_floor(self) -> dict[str, Any]:
        """The reference's floor; where the difference exceeds it, the noisier side's (another dtype, autocast)."""
        floor = self._evidence.once(self._reference, "floor", lambda: measure_floor(self._reference, self._base))
        if not self._figures["native"] <= FLOOR_MULTIPLE * floor.level:
            floor = max(floor, measure_floor(self._candidate), key=lambda floor: floor.level)
        self._floor = floor
        return {**_of_floor(floor), "layers": _by_layer(self._native, floor)}

    def _floor_as_needed(self) -> dict[str, Any]:
        """The floor of either side, as far as it decides."""
        self._floor = self._floors.reach(self._figures["native"] / FLOOR_MULTIPLE)
        self._leave_out("the rest of the noise floor")
        return _of_floor(self._floor)

    def _flips(self) -> dict[str, Any]:
        """Which tokens choose otherwise: nothing where the reference chooses nothing."""
        if not self._chooses:
            return {"flips": None, "flipping": ()}
        chosen = self._evidence.once(self._reference, "selections", lambda: run_with_selections(self._reference))
        flips = flipped(chosen, run_with_selections(self._candidate)) if chosen else None
        return {"flips": flips.share if flips else None, "flipping": flips.modules if flips else ()}

    def _quantised(self) -> dict[str, Any]:
        """How far a quantised side's kernels move the outputs; nothing where neither is quantised."""
        outputs = self._base.outputs, self._native.outputs
        share = kernel_share(self._reference, self._candidate, *outputs, self._found, self._floor.level)
        return {"quantised_kernel": share}

    def _located(self, *, operations: bool) -> tuple[dict[str, Any], dict[str, OwnError]]:
        """Which modules do natively what they do not in float64: fields of `Measured`; and each module's own error.

        Args:
            operations: the outputs lie above their floor, so that the floor of operations is asked for.
        """
        try:
            with without_quantisation(self._reference.model, self._candidate.model, self._found):
                expected = None if self._known_to_repeat or self._found.quantised else self._native.outputs
                natively = self._natively(expected)
                self._chooses = natively.reference_chooses
                own = natively.examine()
                self._repeats = natively.repeats
                beyond = natively.beyond(own)
                floor = natively.operations_floor() if operations else math.nan
        except Exception as error:  # a module of a foreign model, called otherwise than its model calls it
            if out_of_memory(error):
                raise
            return {"unexamined": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}, {}
        return {"beyond": beyond, "examined": len(own), "operations": floor}, own

    def _natively(self, expected: Outputs | None = None) -> Natively:
        evidence = None if self._found.quantised else self._evidence  # of the reference as it is
        reference, candidate, found = self._reference, self._candidate, self._found
        floors = None if self._full or found.quantised else self._floors
        return Natively(
            reference, candidate, found, evidence=evidence, expected=expected, floors=floors, full=self._full
        )

    def _operations(self) -> dict[str, Any]:
        """The floor of operations, where all modules could be run alone."""
        if self._figures.get("unexamined"):
            return {}
        try:
            with without_quantisation(self._reference.model, self._candidate.model, self._found):
                return {"operations": self._natively().operations_floor()}
        except Exception as error:
            if out_of_memory(error):
                raise
            return {}

    def _put_back(self, truth: Outputs) -> dict[str, float | None]:
        """What is left natively without what may excuse a difference above the floor: fields of `Measured`.

        `kernel` is the candidate's error to the high-precision truth over that of eager attention in its own precision.
        """
        candidate, expected, outputs = self._candidate, self._base.outputs, self._native.outputs
        figures: dict[str, float | None] = {}
        if attention_implementation(candidate.model) not in (None, "eager"):
            with attention(candidate.model, "eager"):
                eager = run(candidate)
            error = outputs_rel_l2(truth, eager, discrete=False)
            figures["kernel"] = outputs_rel_l2(truth, outputs, discrete=False) / error if error else None
            figures["native_eager"] = outputs_rel_l2(expected, eager, discrete=False)
        if chosen := self._evidence.once(self._reference, "choices", lambda: choices_of(self._reference)):
            same = run_with_choices(candidate, chosen)
            figures["native_chosen"] = outputs_rel_l2(expected, same, discrete=False) if same is not None else None
        return figures


def _of_floor(floor: Floor) -> dict[str, Any]:
    return {
        "floor": floor.level,
        "floor_spread": floor.spread,
        "floor_samples": len(floor.nudged),
        "rebatched": floor.rebatched,
    }


def _asked(reference: Side, candidate: Side, found: Provenance, cast: list[str]) -> str:
    """The dtypes asked for; of the arguments where the models have none."""
    dtypes = [found.reference_dtype, found.candidate_dtype]
    if None in dtypes and cast:
        leaves = [tree_leaves(side.calls[0].kwargs[cast[0]]) for side in (reference, candidate)]
        dtypes = [next(leaf.dtype for leaf in found if isinstance(leaf, Tensor)) for found in leaves]
    names = " -> ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
    return f"{names}, with {', '.join(cast)}" if cast else names


def _by_layer(native: Trace, floor: Floor) -> tuple[float, ...]:
    """Native over floor of the output of each layer."""
    layers = [module for module in native.modules if module.kind == "layer" and floor.module(module.name) > 0]
    return tuple(module.output.rel_l2 / floor.module(module.name) for module in layers)


def training_counts(reference: Side, candidate: Side) -> dict[str, int]:
    """How many modules are in training mode, by side; sides without any left out."""
    counts = {name: len(training_modules(side.model)) for name, side in zip(SIDES, (reference, candidate), strict=True)}
    return {name: count for name, count in counts.items() if count}
