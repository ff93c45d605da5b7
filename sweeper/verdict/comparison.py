"""Compares any two modules that take keyword tensors: runs, floors, replays, then a verdict."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import nn

from sweeper.comparator.side import Inputs, Side, sides, text_lengths
from sweeper.devices import suppressed
from sweeper.environment import needed
from sweeper.models.names import align
from sweeper.verdict.compared import Compared
from sweeper.verdict.explain import Explanation, explain
from sweeper.verdict.first_divergence import FirstDivergence, Trace, first_divergence, outputs_rel_l2, trace
from sweeper.verdict.first_run import FirstRun, run_both
from sweeper.verdict.gathering import Gathered, gather, training_counts
from sweeper.verdict.measured import Measured
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.repeatability import SIDES, Random, random_side, settled
from sweeper.verdict.replays import Replays
from sweeper.verdict.rules import Kind, Verdict, judge
from sweeper.verdict.state_changes import provenance

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
        pandas = needed("pandas", extra="frames", what="a data frame")
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


def compare_sides(
    reference: Side, candidate: Side, evidence: ReferenceEvidence | None = None, *, full: bool = True
) -> Comparison:
    """`compare_models` for sides that are already laid out, each with its own conditions.

    Args:
        evidence: of the same reference, calls and conditions, from other candidates' comparisons; None: none.
        full: gather all evidence; else only what the kind of the verdict depends on.

    Raises:
        torch.OutOfMemoryError, MemoryError: memory ran out, which says nothing about the models.
    """
    evidence = evidence or ReferenceEvidence()
    reference, candidate = _by_the_same_names(reference, candidate)
    ran = run_both(reference, candidate, evidence, full=full)
    left, right = SIDES
    of_reference = evidence.once(ran.reference, "random", lambda: random_side(ran.reference, left, ran.base.outputs))
    compared = None
    if not full and of_reference is None:  # what the candidate is run for anyway mostly tells that it repeats
        compared, repeats = _steady(ran, evidence, full=False, known_to_repeat=False)
        if repeats:
            return compared
    of_candidate = random_side(ran.candidate, right, ran.native.outputs)
    found = [random for random in (of_reference, of_candidate) if random is not None]
    if found:
        return _random(reference, candidate, ran, found, evidence, full=full)
    return compared or _steady(ran, evidence, full=full)[0]


def _random(
    reference: Side, candidate: Side, ran: FirstRun, found: list[Random], evidence: ReferenceEvidence, *, full: bool
) -> Comparison:
    """What is left once both sides repeat: in eval mode, or where that does not help, all runs draw the same."""
    with settled(reference, candidate, found):
        settled_run = run_both(reference, candidate, evidence, full=full)
        left = _steady(settled_run, evidence, full=full)[0]
        replay = left.measured.replay
        if full and left.measured.identical:
            with suppressed(Exception):  # how exact a replay is can be said, but nothing depends on it
                replay = Replays(*settled_run.sides, left.provenance, evidence, full=True).gather()[0]
    measured = Measured(
        identical=False,
        native=outputs_rel_l2(ran.base.outputs, ran.native.outputs, discrete=False),
        random=tuple(map(str, found)),
        replay=replay,
        left=left.measured,
        training=training_counts(reference, candidate),
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


def _steady(
    ran: FirstRun, evidence: ReferenceEvidence, *, full: bool, known_to_repeat: bool = True
) -> tuple[Comparison, bool | None]:
    """Compares sides that give the same output twice, and says whether the candidate was seen to; None: not known."""
    reference, candidate, native = ran.reference, ran.candidate, ran.native
    found = provenance(reference.model, candidate.model)
    if ran.same:
        measured = Measured(identical=True, native=0.0, partly=ran.partly, uncompared=ran.uncompared)
        verdict, rest = judge(measured), Gathered(measured)
        first = None
    else:
        rest = gather(ran, found, evidence, full=full, known_to_repeat=known_to_repeat)
        verdict = judge(rest.measured)
        if not full and (rest.measured.beyond or rest.measured.nonfinite):  # a later module is what stands out
            native = trace(ran.base, candidate, own=False)
        first = _first(verdict, native, rest, text_lengths(reference, candidate))
    compared = Comparison(
        reference,
        candidate,
        verdict,
        first,
        native,
        rest.replay_trace,
        found,
        rest.measured,
        rest.floor,
        rest.own,
        evidence=evidence,
    )
    return compared, rest.repeats


def _by_the_same_names(reference: Side, candidate: Side) -> tuple[Side, Side]:
    """Both sides with the names that their modules are shown by, where those differ."""
    names = [dict(side.model.named_modules()).keys() for side in (reference, candidate)]
    if names[0] == names[1]:
        return reference, candidate
    found = align(reference.model, candidate.model)
    return replace(reference, names=found.shown(reference=True)), replace(candidate, names=found.shown(reference=False))


def _first(verdict: Verdict, native: Trace, rest: Gathered, lengths: list[int]) -> FirstDivergence | None:
    """Where the sides first differ, by more than rounding if they do: the replay, which has none, shows where.

    Where a module does natively what the replay does not show, it is that module. A compiler's fault is in none.
    """
    measured, replay_trace = rest.measured, rest.replay_trace
    if measured.miscompiled:  # modules show what is written
        return None
    for module in native.modules if measured.beyond else ():
        if module.name.partition("#")[0].partition("[")[0] == measured.beyond[0].name:
            return first_divergence((replace(module, input=None),), lengths)
    if verdict.kind in (Kind.POLICY, Kind.SEMANTIC) and replay_trace is not None and measured.replay is not None:
        found = first_divergence(replay_trace.modules, lengths, measured.replay.bound)
        if found is not None:
            return found
    return first_divergence(native.modules, lengths)
