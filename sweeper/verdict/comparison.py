"""Compares any two modules that take keyword tensors: runs, floors, replays, then a verdict."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.comparator.observation import Observation, observe
from sweeper.comparator.side import Inputs, Outputs, Side, run, sides, text_lengths
from sweeper.devices import out_of_memory, suppressed
from sweeper.metrics.pair import measure
from sweeper.models.names import align
from sweeper.verdict.causes.arguments import arguments_undone, cast_arguments
from sweeper.verdict.causes.tensors import asked_undone, put_back
from sweeper.verdict.compared import Compared
from sweeper.verdict.computed_state import Computed, computed_modules, without
from sweeper.verdict.discrete_choices import choices_of, flipped, run_with_choices, run_with_selections
from sweeper.verdict.explain import Explanation, explain
from sweeper.verdict.first_divergence import (
    FirstDivergence,
    Trace,
    first_divergence,
    outputs_rel_l2,
    rel_l2,
    trace,
)
from sweeper.verdict.first_run import FirstRun, run_both
from sweeper.verdict.float64_replay import Precision, attention, attention_implementation, replayed
from sweeper.verdict.noise_floor import Floor, measure_floor, output_floor
from sweeper.verdict.own_errors import Natively
from sweeper.verdict.quantisation import kernel_share, without_quantisation
from sweeper.verdict.repeatability import SIDES, Random, random_side, settled, training_modules
from sweeper.verdict.rules import FLOOR_MULTIPLE, Kind, Measured, OwnError, Replayed, Verdict, judge
from sweeper.verdict.state_changes import Change, Provenance, provenance

if TYPE_CHECKING:
    import pandas


def compare_models(
    reference: nn.Module, candidate: nn.Module, inputs: Inputs, candidate_inputs: Inputs | None = None
) -> Comparison:
    """Says how far two models' outputs are apart, since which module, and what the difference means.

    Both models are left as they were found, bit for bit; they are run some twenty times on these inputs.

    Args:
        reference, candidate: modules that take keyword tensors; transformers models or not.
        inputs: keyword arguments, or a sequence of them (several calls, texts in the same order on both sides).
        candidate_inputs: where the candidate is called differently (packed, padded otherwise); None: the same.

    Raises:
        AlignmentError: the two sides do not read the same real tokens, or give no common output.
    """
    return compare_sides(*sides(reference, candidate, inputs, candidate_inputs))


class Comparison(Compared):
    """What came out. `str()` or a notebook's display gives the summary."""

    @functools.cached_property
    def modules(self) -> pandas.DataFrame:
        """One row a module in order of execution: the measures, own and inherited share, floor and replay."""
        import pandas

        replays = (
            {module.name: module.output.rel_l2 for module in self.replay_trace.modules} if self.replay_trace else {}
        )
        rows = [
            {
                "order": module.order,
                "name": module.name,
                "module_type": module.module_type,
                "layer": module.layer,
                "kind": module.kind,
                "origin": module.origin,
                "own_rel_l2": own.own if (own := self.own.get(module.name)) is not None else module.own,
                "own_floor_rel_l2": own.floor if own is not None else math.nan,
                "floor_rel_l2": self.floor.module(module.name),
                "replay_rel_l2": replays.get(module.name, math.nan),
                **module.output.model_dump(),
            }
            for module in self.native.modules
        ]
        return pandas.DataFrame(rows)

    def explain(self) -> Explanation:
        """Looks for the cause: puts one thing back at a time, and runs again."""
        return self._explanation

    @functools.cached_property
    def _explanation(self) -> Explanation:
        return explain(self)

    def __repr__(self) -> str:
        lines = [f"{str(self.verdict.kind).upper()}: {self.verdict.reason}"]
        if self.first_divergence is not None:
            lines.append(f"  first divergence: {self.first_divergence}")
        if self.verdict.decides:
            lines.append(f"  would decide: {self.verdict.decides}")
        lines += [f"  {evidence}" for evidence in self.verdict.evidence]
        if self.native.unaligned:
            names = list(self.native.unaligned)
            lines.append(f"  not aligned: {', '.join(names[:5])}{' ...' if len(names) > 5 else ''}")
        if "_explanation" in self.__dict__:
            lines.append(f"  cause: {self._explanation.cause}")
        elif self.verdict.kind is not Kind.IDENTICAL:
            lines.append("  .explain().cause says why")
        return "\n".join(lines)


def compare_sides(reference: Side, candidate: Side) -> Comparison:
    """`compare_models` for sides that are already laid out, each with its own conditions.

    Raises:
        torch.OutOfMemoryError, MemoryError: memory ran out, which says nothing about the models.
    """
    reference, candidate = _by_the_same_names(reference, candidate)
    ran = run_both(reference, candidate)
    outputs = {"reference": ran.base.outputs, "candidate": ran.native.outputs}
    sides = zip(SIDES, (ran.reference, ran.candidate), strict=True)
    found = [random for name, side in sides if (random := random_side(side, name, outputs[name]))]
    return _random(reference, candidate, ran, found) if found else _steady(ran)


def _random(reference: Side, candidate: Side, ran: FirstRun, found: list[Random]) -> Comparison:
    """What is left once both sides repeat: in eval mode, or where that does not help, all runs draw the same."""
    with settled(reference, candidate, found):
        settled_run = run_both(reference, candidate)
        left = _steady(settled_run)
        replay = left.measured.replay
        if left.measured.identical:
            with suppressed(Exception):  # how exact a replay is can be said, but nothing depends on it
                replay = _replay(*settled_run.sides, left.provenance, text_lengths(reference, candidate))[0]
    measured = Measured(
        identical=False,
        native=outputs_rel_l2(ran.base.outputs, ran.native.outputs, discrete=False),
        random=tuple(map(str, found)),
        replay=replay,
        left=left.measured,
        training=_training(reference, candidate),
    )
    first = next((random.first for random in found if random.first is not None), None)
    return replace(
        left,
        reference=ran.reference,
        candidate=ran.candidate,
        verdict=judge(measured),
        first_divergence=first,
        native=ran.native,
        measured=measured,
        random=tuple(found),
        left=left,
    )


def _steady(ran: FirstRun) -> Comparison:
    """Of sides that give the same output twice."""
    reference, candidate, base, native = ran.reference, ran.candidate, ran.base, ran.native
    found = provenance(reference.model, candidate.model)
    lengths = text_lengths(reference, candidate)
    if ran.same:
        measured = Measured(identical=True, native=0.0, partly=ran.partly, uncompared=ran.uncompared)
        return Comparison(reference, candidate, judge(measured), None, native, None, found, measured, Floor())
    figures, floor = _native_figures(reference, candidate, base, native, found)
    replay_trace: Trace | None = None
    own: dict[str, OwnError] = {}
    try:
        figures["replay"], replay_trace, truth = _replay(reference, candidate, found, lengths)
        computed = computed_modules(reference, candidate, found) if not figures["replay"].collapsed else []
        if computed:
            figures["computed"] = {module.name: module.distance for module in computed}
            figures["replay"] = replace(
                figures["replay"], computed=_outside(reference, candidate, found, truth, computed)
            )
        if figures["replay"].collapsed and figures["native"] > 0:
            above = figures["native"] > FLOOR_MULTIPLE * floor.level
            located, own = _located(reference, candidate, found, above=above)
            figures |= located
            if above:
                figures |= _put_back(reference, candidate, base.outputs, native.outputs, truth)
    except Exception as error:  # whatever a foreign model raises in float64 is a fact about the replay, not a failure
        if out_of_memory(error):
            raise
        figures["replay_error"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    measured = Measured(**figures, partly=ran.partly, uncompared=ran.uncompared)
    verdict = judge(measured)
    first = _first(verdict, native, replay_trace, measured, lengths)
    return Comparison(reference, candidate, verdict, first, native, replay_trace, found, measured, floor, own)


def _by_the_same_names(reference: Side, candidate: Side) -> tuple[Side, Side]:
    """Both sides with the names that their modules are shown by, where those differ."""
    names = [dict(side.model.named_modules()).keys() for side in (reference, candidate)]
    if names[0] == names[1]:
        return reference, candidate
    found = align(reference.model, candidate.model)
    return replace(reference, names=found.shown(reference=True)), replace(candidate, names=found.shown(reference=False))


def _native_figures(
    reference: Side, candidate: Side, base: Observation, native: Trace, found: Provenance
) -> tuple[dict[str, Any], Floor]:
    """What is known without a replay: fields of `Measured`."""
    # where no real number differs, what flipped is all that there is
    native_rel_l2 = outputs_rel_l2(base.outputs, native.outputs, discrete=False) or outputs_rel_l2(
        base.outputs, native.outputs
    )
    floor = _noisier_floor(reference, candidate, base, native_rel_l2)
    flips = flipped(run_with_selections(reference), run_with_selections(candidate))
    cast = cast_arguments(reference, candidate, found)
    figures: dict[str, Any] = {
        "identical": False,
        "native": native_rel_l2,
        "nonfinite": _nonfinite(base.outputs, native.outputs),
        "floor": floor.level,
        "floor_spread": floor.spread,
        "floor_samples": len(floor.nudged),
        "rebatched": floor.rebatched,
        "layers": _by_layer(native, floor),
        "training": _training(reference, candidate),
        "asked": _asked(reference, candidate, found, cast) if found.asked or cast else None,
        "rounded": tuple(sorted(found.rounded)),
        "other": tuple(sorted(found.other)),
        "missing": found.missing,
        "quantised": found.schemes,
        "quantised_kernel": kernel_share(reference, candidate, base.outputs, native.outputs, found, floor.level),
        "flips": flips.share if flips else None,
        "flipping": flips.modules if flips else (),
    }
    return figures, floor


def _noisier_floor(reference: Side, candidate: Side, base: Observation, native: float) -> Floor:
    """The reference's floor; where the difference exceeds it, that of the noisier side (another dtype, autocast)."""
    floor = measure_floor(reference, base)
    if native <= FLOOR_MULTIPLE * floor.level:
        return floor
    return max(floor, measure_floor(candidate), key=lambda floor: floor.level)


def _nonfinite(reference: Outputs, candidate: Outputs) -> int:
    return sum(measure(reference[name], candidate[name]).nonfinite_mismatch for name in reference if name in candidate)


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


def _training(reference: Side, candidate: Side) -> dict[str, int]:
    """How many modules are in training mode, by side; sides without any left out."""
    counts = {name: len(training_modules(side.model)) for name, side in zip(SIDES, (reference, candidate), strict=True)}
    return {name: count for name, count in counts.items() if count}


def _replay(reference: Side, candidate: Side, found: Provenance, lengths: list[int]) -> tuple[Replayed, Trace, Outputs]:
    """Both sides in float64; also the candidate with what was asked for, and what was not, put back."""
    with asked_undone(reference.model, found, reference=True), replayed(reference) as (side, left):
        base = observe(side)
        noise = output_floor(side, base.outputs)
    undone = arguments_undone(reference, candidate, found)
    with replayed(candidate) as (side, _):
        as_loaded = (
            outputs_rel_l2(base.outputs, run(side))
            if found.asked or found.quantised or undone is not candidate
            else None
        )
    asked, asked_trace, right = _replay_candidate(base, undone, found, [])
    policy = None
    if found.rounded:
        policy = _replay_candidate(base, undone, found, found.rounded.values())[0]
    replay = Replayed(
        precision=str(left if left.lower else right),
        eps=_replay_eps(left, right),
        as_loaded=asked if as_loaded is None else as_loaded,
        asked=asked,
        policy=policy,
        noise=noise,
    )
    return _signed(replay, base.outputs, asked_trace.outputs, lengths), asked_trace, base.outputs


def _replay_candidate(
    base: Observation, candidate: Side, found: Provenance, changes: Iterable[Change]
) -> tuple[float, Trace, Precision]:
    """rel_l2 of the candidate's replay, with what was asked for and `changes` put back, against the reference's."""
    model = candidate.model
    with (
        asked_undone(model, found, reference=False),
        put_back(model, changes),
        replayed(candidate) as (side, precision),
    ):
        traced = trace(base, side, own=False)
    return outputs_rel_l2(base.outputs, traced.outputs), traced, precision


def _replay_eps(left: Precision, right: Precision) -> float:
    """What the replay can tell apart. Code that rounds to 16 bits on one side only is a difference, not a limit."""
    either = max(left.eps, right.eps)
    return max(min(left.eps, right.eps), min(either, torch.finfo(torch.float32).eps))


def _signed(replay: Replayed, reference: Outputs, candidate: Outputs, lengths: list[int]) -> Replayed:
    """Adds the first shared output that differs (else the first), text by text and position by position."""
    shared = [name for name in reference if name in candidate]
    differing = (name for name in shared if rel_l2(reference[name], candidate[name]) > replay.bound)
    name = next(differing, shared[0])
    left, right = reference[name], candidate[name]
    of_texts = len(left) == len(lengths) < sum(lengths)  # pooled: a row a text
    rows = [1] * len(lengths) if of_texts else lengths
    if len(left) != sum(rows):
        return replay
    texts = tuple(rel_l2(*pair) for pair in zip(left.split(rows), right.split(rows), strict=True))
    if of_texts:
        return replace(replay, texts=texts)
    position_N = torch.cat([torch.arange(length) for length in lengths]).to(left.device)
    doubling_N = torch.frexp(position_N.float()).exponent  # 0, 1, 2 for 2 and 3, 3 for 4 to 7, ...
    places = [doubling_N == place for place in range(int(doubling_N.max()) + 1)]
    return replace(replay, texts=texts, positions=tuple(rel_l2(left[place_N], right[place_N]) for place_N in places))


def _outside(
    reference: Side, candidate: Side, found: Provenance, truth: Outputs, computed: list[Computed]
) -> float | None:
    """What is left of the replay outside modules whose state was computed; None where one of them is not excused."""
    if not all(module.excused for module in computed):
        return None
    if any(not module.name for module in computed):
        return 0.0  # the model itself is one: nothing is outside
    undone = arguments_undone(reference, candidate, found)
    with (
        asked_undone(candidate.model, found, reference=False),
        without(candidate.model, reference.model, computed),
        replayed(undone) as (side, _),
    ):
        return outputs_rel_l2(truth, run(side))


def _located(
    reference: Side, candidate: Side, found: Provenance, *, above: bool
) -> tuple[dict[str, Any], dict[str, OwnError]]:
    """Which modules do natively what they do not in float64: fields of `Measured`; and each module's own error.

    Args:
        above: the outputs lie above their floor, so that the floor of operations is asked for.
    """
    try:
        with without_quantisation(reference.model, candidate.model, found):
            natively = Natively(reference, candidate, found)
            own = natively.examine()
            beyond = natively.beyond(own)
            operations = natively.operations_floor() if above else math.nan
    except Exception as error:  # a module of a foreign model, called otherwise than its model calls it
        if out_of_memory(error):
            raise
        return {"unexamined": f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"}, {}
    return {"beyond": beyond, "examined": len(own), "operations": operations}, own


def _put_back(
    reference: Side, candidate: Side, expected: Outputs, outputs: Outputs, truth: Outputs
) -> dict[str, float | None]:
    """What is left natively without what may excuse a difference above the floor: fields of `Measured`.

    `kernel` is the candidate's error to the high-precision truth over that of eager attention in its own precision.
    """
    figures: dict[str, float | None] = {}
    if attention_implementation(candidate.model) not in (None, "eager"):
        with attention(candidate.model, "eager"):
            eager = run(candidate)
        error = outputs_rel_l2(truth, eager, discrete=False)
        figures["kernel"] = outputs_rel_l2(truth, outputs, discrete=False) / error if error else None
        figures["native_eager"] = outputs_rel_l2(expected, eager, discrete=False)
    if chosen := choices_of(reference):
        same = run_with_choices(candidate, chosen)
        figures["native_chosen"] = outputs_rel_l2(expected, same, discrete=False) if same is not None else None
    return figures


def _first(
    verdict: Verdict, native: Trace, replay_trace: Trace | None, measured: Measured, lengths: list[int]
) -> FirstDivergence | None:
    """By more than rounding where there is more: then the replay, which has none, shows where it starts.

    Where a module does natively what the replay does not show, it is that module.
    """
    for module in native.modules if measured.beyond else ():
        if module.name.partition("#")[0].partition("[")[0] == measured.beyond[0].name:
            return first_divergence((replace(module, input=None),), lengths)
    if verdict.kind in (Kind.POLICY, Kind.SEMANTIC) and replay_trace is not None and measured.replay is not None:
        found = first_divergence(replay_trace.modules, lengths, measured.replay.bound)
        if found is not None:
            return found
    return first_divergence(native.modules, lengths)
