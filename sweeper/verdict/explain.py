"""Looks for the cause: puts one thing back, runs again, and sees how much of the difference is gone.

Ordered by the evidence, so that it stops early; pairs are tried where no single one closes the difference.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sweeper.comparator.observation import observe
from sweeper.comparator.side import Outputs, Side, run, text_lengths
from sweeper.verdict.causes.arguments import call_counterfactuals
from sweeper.verdict.causes.code import code_counterfactuals, differing_config
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.causes.switches import (
    attention_counterfactuals,
    dtype_counterfactuals,
    pooling_counterfactuals,
    switch_counterfactuals,
    training_counterfactuals,
    upcast_counterfactuals,
)
from sweeper.verdict.causes.tensors import asked_undone, state_counterfactuals
from sweeper.verdict.first_divergence import FirstDivergence, first_divergence, outputs_rel_l2, trace
from sweeper.verdict.float64_replay import replayed
from sweeper.verdict.rules import Kind

if TYPE_CHECKING:
    from sweeper.verdict.compared import Compared

_PAIRED = 4  # of the most promising single changes, pairs are tried


@dataclass(frozen=True)
class Tried:
    """One counterfactual that was run.

    Attributes:
        name, fix, group: see `Counterfactual`.
        native: rel_l2 of the outputs with it put back; NaN where the model does not run so.
        native_closed: share of the native difference that it takes away; negative where it makes more of it.
        bitwise: the outputs have the same bits.
        replay: rel_l2 in the float64 replay; NaN where that was not run. collapsed: it lies within the replay's noise.
        error: why it could not be run.
    """

    name: str
    fix: str
    group: str
    native: float = math.nan
    native_closed: float = math.nan
    bitwise: bool = False
    replay: float = math.nan
    collapsed: bool = False
    error: str | None = None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.name}: {self.error}"
        closes = "closed bitwise" if self.bitwise else f"{self.native_closed:.0%} closed"
        if math.isnan(self.native_closed):
            closes = "does not run natively"
        replay = f", {self.replay:.2g} left in float64" if not math.isnan(self.replay) else ""
        return f"{self.name}: {closes}{replay}"


@dataclass(frozen=True)
class Explanation:
    """What was found.

    Attributes:
        cause: a sentence that a user can act on.
        closing: what closes the difference, or None.
        since: the first module that what closes it changes; without any, the comparison's first divergence.
        tried: all that was run, best first.
    """

    cause: str
    closing: Tried | None
    since: FirstDivergence | None
    tried: tuple[Tried, ...]

    def __repr__(self) -> str:
        return "\n".join([self.cause, *(f"  {tried}" for tried in self.tried)])


def explain(comparison: Compared) -> Explanation:
    """Tries what differs, narrowest and likeliest first, until something closes the difference."""
    if comparison.verdict.kind is Kind.IDENTICAL:
        return Explanation("nothing differs: every compared tensor has the same bits", None, None, ())
    if comparison.measured.native == 0:
        first = comparison.first_divergence
        return Explanation(f"the outputs have the same bits; inside, what differs is {first}", None, first, ())
    search = _Search(comparison)
    closing = search.single(wide=False) or search.pairs() or search.single(wide=True)
    tried = tuple(sorted(search.tried, key=_rank))
    since = search.since() if closing is not None else None
    since = since or comparison.first_divergence
    return Explanation(_sentence(comparison, closing, since, tried), closing, since, tried)


def _rank(tried: Tried) -> tuple[bool, bool, float, float]:
    replay = math.inf if math.isnan(tried.replay) else tried.replay
    closed = -math.inf if math.isnan(tried.native_closed) else tried.native_closed
    return not tried.collapsed, not tried.bitwise, replay, -closed


class _Search:
    """The search's memory: the reference's own runs, which most counterfactuals leave alone, and what was tried."""

    def __init__(self, comparison: Compared) -> None:
        self._comparison = comparison
        self._pair = Pair(comparison.reference, comparison.candidate)
        self._native = run(comparison.reference)
        self._decides_by_replay = comparison.verdict.kind in (Kind.POLICY, Kind.SEMANTIC)
        self._replay = self._replay_outputs(self._pair, reference=True) if self._decides_by_replay else None
        self._results: list[tuple[Counterfactual, Tried]] = []
        self._closing: Counterfactual | None = None

    @property
    def tried(self) -> list[Tried]:
        return [tried for _, tried in self._results]

    def single(self, *, wide: bool) -> Tried | None:
        """The first counterfactual that closes the difference, narrowed to the least part that does."""
        for counterfactual in self._ordered():
            if counterfactual.wide is not wide:
                continue
            tried = self._try(counterfactual)
            if self._closes(tried):
                return self._narrowed(counterfactual, tried)
        return None

    def since(self) -> FirstDivergence | None:
        """Where the candidate first differs from itself with the cause put back: nothing else differs."""
        if self._closing is None:
            return None
        lengths = text_lengths(*self._pair)
        with self._closing.apply(self._pair) as pair, self._precise(pair.candidate) as side:
            fixed = observe(side)
        with self._precise(self._pair.candidate) as side:
            traced = trace(fixed, side)
        return first_divergence(traced.modules, lengths, self._bound)

    def pairs(self) -> Tried | None:
        """The first pair of the most promising ones that closes it; a higher precision puts nothing back."""
        ran = [result for result in self._results if result[1].error is None and result[0].group != "upcast"]
        promising = sorted(ran, key=lambda result: _rank(result[1]))[:_PAIRED]
        for (first, _), (second, _) in itertools.combinations(promising, 2):
            tried = self._try(_both(first, second))
            if self._closes(tried):
                self._closing = _both(first, second)
                return tried
        return None

    def _ordered(self) -> Iterator[Counterfactual]:
        """Lazily: what comes late is not even listed when something early closes the difference."""
        comparison, pair = self._comparison, self._pair
        yield from training_counterfactuals(pair)
        yield from pooling_counterfactuals(pair)
        yield from state_counterfactuals(comparison.provenance)
        yield from call_counterfactuals(pair)
        if self._decides_by_replay:
            yield from code_counterfactuals(pair, comparison.first_divergence)
        yield from switch_counterfactuals(pair)
        yield from attention_counterfactuals(pair)
        yield from dtype_counterfactuals(pair)
        if not self._decides_by_replay:
            yield from upcast_counterfactuals(pair)

    def _narrowed(self, counterfactual: Counterfactual, tried: Tried) -> Tried:
        for part in counterfactual.parts:
            narrower = self._try(part)
            if self._closes(narrower):
                return self._narrowed(part, narrower)
        self._closing = counterfactual
        return tried

    def _closes(self, tried: Tried) -> bool:
        return tried.collapsed if self._decides_by_replay else tried.bitwise

    def _try(self, counterfactual: Counterfactual) -> Tried:
        tried = Tried(counterfactual.name, counterfactual.fix, counterfactual.group)
        try:
            with counterfactual.apply(self._pair) as pair:
                tried = self._run(pair, tried)
        except Exception as error:  # a combination that the model cannot run is an answer, not a failure
            tried = replace(tried, error=f"cannot be run so: {type(error).__name__}")
        self._results.append((counterfactual, tried))
        return tried

    def _run(self, pair: Pair, tried: Tried) -> Tried:
        if self._replay is not None:
            same_reference = pair.reference is self._pair.reference
            reference = self._replay if same_reference else self._replay_outputs(pair, reference=True)
            rest = outputs_rel_l2(reference, self._replay_outputs(pair, reference=False))
            tried = replace(tried, replay=rest, collapsed=rest <= self._bound)
        before = self._comparison.measured.native
        with contextlib.suppress(RuntimeError):  # two dtypes that meet only natively
            reference = self._native if pair.reference is self._pair.reference else run(pair.reference)
            native = outputs_rel_l2(reference, run(pair.candidate))
            closed = 1 - native / before if before else 0.0
            tried = replace(tried, native=native, native_closed=closed, bitwise=native == 0)
        return tried

    @property
    def _bound(self) -> float:
        replay = self._comparison.measured.replay
        return replay.weak_bound if self._decides_by_replay and replay is not None else 0.0

    @contextlib.contextmanager
    def _precise(self, candidate: Side) -> Iterator[Side]:
        """The candidate as it decides: in the replay for policy and semantic, as it ran for rounding."""
        if not self._decides_by_replay:
            yield candidate
            return
        found = self._comparison.provenance
        with asked_undone(candidate.model, found, reference=False), replayed(candidate) as (lifted, _):
            yield lifted

    def _replay_outputs(self, pair: Pair, *, reference: bool) -> Outputs:
        if not reference:
            with self._precise(pair.candidate) as side:
                return run(side)
        found = self._comparison.provenance
        with asked_undone(pair.reference.model, found, reference=True), replayed(pair.reference) as (lifted, _):
            return run(lifted)


def _both(first: Counterfactual, second: Counterfactual) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with first.apply(pair) as once, second.apply(once) as twice:
            yield twice

    return Counterfactual(f"{first.name}; and {second.name}", f"{first.fix}; and {second.fix}", first.group, apply)


def _sentence(
    comparison: Compared, closing: Tried | None, since: FirstDivergence | None, tried: tuple[Tried, ...]
) -> str:
    measured = comparison.measured
    if closing is not None:
        where = f"; {since}" if since is not None else ""
        hint = f" (the configs differ in {', '.join(names)})" if (names := _config_hint(comparison, closing)) else ""
        moved = f"outputs move by rel_l2 {measured.native:.2g}"
        return f"{closing.name}{hint}{where}; {moved}. To put back: {closing.fix} ({_proof(comparison, closing)})."
    best = tried[0] if tried and tried[0].native_closed > 0 else None
    most = f"; the most is closed by: {best}" if best is not None else ""
    if comparison.verdict.kind is Kind.ROUNDING:
        floors = measured.native / measured.floor
        return f"No single change closes it bitwise: rounding, {floors:.2g}x the noise floor{most}."
    where = f" It is {since}." if since is not None else ""
    return f"Nothing that was tried closes it ({len(tried)} changes){most}.{where}"


def _config_hint(comparison: Compared, closing: Tried) -> list[str]:
    """State that differs was often computed from a config that does."""
    pair = Pair(comparison.reference, comparison.candidate)
    return differing_config(pair) if closing.group == "state" else []


def _proof(comparison: Compared, closing: Tried) -> str:
    native = "closed bitwise" if closing.bitwise else f"natively {closing.native_closed:.0%} closed"
    if math.isnan(closing.native):
        native = "natively it does not run alone"
    elif not closing.bitwise and comparison.measured.asked:
        native = f"natively the dtype asked for ({comparison.measured.asked}) hides it"
    replay = comparison.measured.replay
    if math.isnan(closing.replay) or replay is None:
        return native
    return f"{native}; in the float64 replay {replay.asked:.2g} becomes {closing.replay:.2g}"
