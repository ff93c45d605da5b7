"""Runs counterfactuals: puts one thing back, runs again, and sees how much of the difference is gone.

Ordered by the evidence, so that it stops early; pairs are tried where no single one closes the difference.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from sweeper.comparator.observation import observe_within
from sweeper.comparator.outputs import same_bits
from sweeper.comparator.side import Outputs, Side, run, text_lengths
from sweeper.devices import out_of_memory, suppressed
from sweeper.verdict.causes.arguments import arguments_undone, call_counterfactuals, row_counterfactuals
from sweeper.verdict.causes.code import (
    code_counterfactuals,
    computed_counterfactuals,
    opaque_modules,
    wrapper_counterfactuals,
)
from sweeper.verdict.causes.compiled import compiled_counterfactuals, handed_over_counterfactuals
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.causes.switches import (
    attention_counterfactuals,
    dtype_counterfactuals,
    pooling_counterfactuals,
    precise_counterfactuals,
    switch_counterfactuals,
    training_counterfactuals,
    upcast_counterfactuals,
)
from sweeper.verdict.causes.tensors import asked_undone, quantised_counterfactuals, state_counterfactuals
from sweeper.verdict.compared import Compared
from sweeper.verdict.compiled_code import again
from sweeper.verdict.first_divergence import FirstDivergence, compare_runs, first_divergence, nonfinite, outputs_rel_l2
from sweeper.verdict.float64_replay import replayed
from sweeper.verdict.own_errors import Natively
from sweeper.verdict.repeatability import SIDES
from sweeper.verdict.rules import Kind
from sweeper.verdict.thresholds import OWN_MULTIPLE

_PAIRED = 4  # of the most promising single changes, pairs are tried
_CODE_FOR_ROUNDING = 12  # where no function differs, so many changes of code are tried and no more


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


class Search:
    """The search's memory: the reference's own runs, which most counterfactuals leave alone, and what was tried.

    Attributes:
        unexplored: what could not be looked into, with the module and the exception.
    """

    def __init__(self, comparison: Compared) -> None:
        self._comparison = comparison
        self._pair = Pair(comparison.reference, comparison.candidate)
        self._native = comparison.evidence.outputs(comparison.reference)
        self._goal = _goal(comparison)
        evidence, found = comparison.evidence, comparison.provenance
        self._replay = evidence.replay_outputs(comparison.reference, found) if self._goal == "replay" else None
        self._results: list[_Result] = []
        self._closing: Counterfactual | None = None
        self.unexplored: list[str] = opaque_modules(self._pair)

    @property
    def tried(self) -> list[Tried]:
        """All that was run, best first."""
        return [result.tried for result in sorted(self._results, key=_rank)]

    def search(self) -> Tried | None:
        """What closes the difference: one thing, or a pair, or what puts much back at once."""
        return self._single(wide=False) or self._pairs() or self._single(wide=True) or self._bitwise()

    def moved(self) -> list[str]:
        """The outputs that differ, where others do not."""
        outputs = self._comparison.native.outputs
        shared = [name for name in self._native if name in outputs]
        differing = [name for name in shared if not same_bits(self._native[name], outputs[name])]
        return differing if len(differing) < len(shared) else []

    def _bitwise(self) -> Tried | None:
        """What gives the same bits natively though the replay cannot tell (of compiled code, of a graph)."""
        closing = next((result for result in self._results if result.tried.bitwise), None)
        if closing is None or not self._comparison.measured.native:
            return None
        self._closing = closing.counterfactual
        return closing.tried

    def since(self) -> FirstDivergence | None:
        """Where the candidate first differs from itself with the cause put back: nothing else differs."""
        if self._closing is None or self._closing.group == "compiled":  # modules show what is written
            return None
        try:
            return self._since(self._closing)
        except Exception as error:  # the cause is known all the same
            self._unexplored("where it starts", error)
            return None

    def _since(self, closing: Counterfactual) -> FirstDivergence | None:
        @contextlib.contextmanager
        def put_back() -> Iterator[Side]:
            with closing.apply(self._pair) as pair, self._precise(pair.candidate) as side:
                yield side

        fixed = observe_within(put_back)
        ran = observe_within(lambda: self._precise(self._pair.candidate), fixed.inputs())
        traced = compare_runs(fixed, ran, own=True, until=self._bound)
        return first_divergence(traced.modules, text_lengths(*self._pair), self._bound)

    def _single(self, *, wide: bool) -> Tried | None:
        """The first counterfactual that closes the difference, narrowed to the least part that does."""
        for counterfactual in self._ordered():
            if counterfactual.wide is not wide:
                continue
            result = self._try(counterfactual)
            if result.closes:
                return self._narrowed(result).tried
        return None

    def _pairs(self) -> Tried | None:
        """The first pair of the most promising ones that closes it; a higher precision puts nothing back."""
        ran = [one for one in self._results if one.tried.error is None and one.counterfactual.group != "upcast"]
        promising = sorted(ran, key=_rank)[:_PAIRED]
        for first, second in itertools.combinations(promising, 2):
            result = self._try(_both(first.counterfactual, second.counterfactual))
            if result.closes:
                self._closing = result.counterfactual
                return result.tried
        return None

    def _ordered(self) -> Iterator[Counterfactual]:
        """Lazily: what comes late is not even listed when something early closes the difference."""
        pair, found = self._pair, self._comparison.provenance
        measured, functions_differ = self._comparison.measured, self._goal == "replay"
        miscompiled = measured.miscompiled
        sources: list[tuple[str, Callable[[], Iterable[Counterfactual]]]] = [
            ("miscompiled code", lambda: compiled_counterfactuals(pair, [code.side for code in miscompiled])),
            ("training mode", lambda: training_counterfactuals(pair)),
            ("pooling", lambda: pooling_counterfactuals(pair)),
            ("compiled code", lambda: () if functions_differ else handed_over_counterfactuals(pair)),
            ("quantisation", lambda: quantised_counterfactuals(found)),
            ("computed state", lambda: () if functions_differ else computed_counterfactuals(pair, measured.computed)),
            ("parameters and buffers", lambda: state_counterfactuals(found)),
            ("arguments", lambda: call_counterfactuals(pair, found)),
            ("code", self._code),
            ("wrappers", lambda: wrapper_counterfactuals(pair)),
            ("rows of a batch", lambda: row_counterfactuals(pair) if functions_differ else ()),
            ("flags", lambda: switch_counterfactuals(pair)),
            ("attention backend", lambda: attention_counterfactuals(pair)),
            ("what follows the dtype", self._following_dtype),
            ("dtype", lambda: dtype_counterfactuals(pair, found)),
            ("rounding by kind of module", lambda: () if functions_differ else upcast_counterfactuals(pair)),
        ]
        for title, source in sources:
            try:
                listed = list(source())
            except Exception as error:  # code of a foreign model that cannot be looked into
                self._unexplored(title, error)
                continue
            yield from listed

    def _code(self) -> list[Counterfactual]:
        """Where no function differs, code that closes it bitwise is looked for all the same, but not endlessly."""
        if self._goal in ("replay", "own"):
            return code_counterfactuals(self._pair, self._comparison.first_divergence)
        found = code_counterfactuals(self._pair, None)
        if len(found) > _CODE_FOR_ROUNDING:
            rest = len(found) - _CODE_FOR_ROUNDING
            self._note(f"{rest} further differences of code, {found[_CODE_FOR_ROUNDING].name} the first")
        return found[:_CODE_FOR_ROUNDING]

    def _following_dtype(self) -> list[Counterfactual]:
        """The modules that lie too far off, and hold no other such module, in float64."""
        names = [one.name for one in self._comparison.measured.beyond if one.name]
        inner = [name for name in names if not any(other.startswith(f"{name}.") for other in names)]
        return precise_counterfactuals(inner) if self._goal == "own" else []

    def _unexplored(self, what: str, error: Exception) -> None:
        if out_of_memory(error):
            raise error
        self._note(f"{what} ({_said(error)})")

    def _note(self, what: str) -> None:
        if what not in self.unexplored:
            self.unexplored.append(what)

    def _narrowed(self, result: _Result) -> _Result:
        for part in result.counterfactual.parts:
            narrower = self._try(part)
            if narrower.closes:
                return self._narrowed(narrower)
        self._closing = result.counterfactual
        return result

    def _try(self, counterfactual: Counterfactual) -> _Result:
        tried = Tried(counterfactual.name, counterfactual.fix, counterfactual.group)
        try:
            with counterfactual.apply(self._pair) as pair:
                result = self._run(counterfactual, pair, tried)
        except Exception as error:  # a combination that the model cannot run is an answer, not a failure
            if out_of_memory(error):
                raise
            result = _Result(counterfactual, replace(tried, error=f"cannot be run so: {_said(error)}"), closes=False)
        self._results.append(result)
        return result

    def _run(self, counterfactual: Counterfactual, pair: Pair, tried: Tried) -> _Result:
        if self._replay is not None:
            same_reference = pair.reference is self._pair.reference
            reference = self._replay if same_reference else self._replay_outputs(pair, reference=True)
            rest = outputs_rel_l2(reference, self._replay_outputs(pair, reference=False))
            tried = replace(tried, replay=rest, collapsed=rest <= self._bound)
        before, finite = self._comparison.measured.native, False
        with suppressed(RuntimeError):  # two dtypes that meet only natively
            reference = self._native if pair.reference is self._pair.reference else run(pair.reference)
            candidate = run(pair.candidate)
            native = outputs_rel_l2(reference, candidate, discrete=False)
            closed = 1 - native / before if before else 0.0
            bitwise = all(same_bits(reference[name], candidate[name]) for name in reference if name in candidate)
            tried = replace(tried, native=native, native_closed=closed, bitwise=bitwise)
            finite = nonfinite(reference, candidate) == 0
        closes = {"replay": tried.collapsed, "finite": finite}.get(self._goal, tried.bitwise)
        if self._goal == "own" and not closes:
            closes = self._within_floors(pair)
        if self._goal == "written":
            closes = counterfactual.group == "compiled" and self._runs_as_written(pair)
        return _Result(counterfactual, tried, closes=closes)

    def _runs_as_written(self, pair: Pair) -> bool:
        """Whether compiled code that was another function than what is written no longer is."""
        sides = dict(zip(SIDES, pair, strict=True))
        return not any(again(sides[code.side], code).other_function for code in self._comparison.measured.miscompiled)

    def _within_floors(self, pair: Pair) -> bool:
        """Whether those modules that lay too far from the reference's on its arguments no longer do."""
        names = {one.name for one in self._comparison.measured.beyond}
        own = Natively(*pair, self._comparison.provenance, names).examine(names)
        return names <= own.keys() and not any(one.floors > OWN_MULTIPLE for one in own.values())

    @property
    def _bound(self) -> float:
        replay = self._comparison.measured.replay
        return replay.weak_bound if self._goal == "replay" and replay is not None else 0.0

    @contextlib.contextmanager
    def _precise(self, candidate: Side) -> Iterator[Side]:
        """The candidate as it decides: in the replay where that shows the difference, else as it ran."""
        if self._goal != "replay":
            yield candidate
            return
        found = self._comparison.provenance
        undone = arguments_undone(self._pair.reference, candidate, found)
        with asked_undone(candidate.model, found, reference=False), replayed(undone) as (lifted, _):
            yield lifted

    def _replay_outputs(self, pair: Pair, *, reference: bool) -> Outputs:
        if not reference:
            with self._precise(pair.candidate) as side:
                return run(side)
        found = self._comparison.provenance
        with asked_undone(pair.reference.model, found, reference=True), replayed(pair.reference) as (lifted, _):
            return run(lifted)


Goal = Literal["written", "replay", "own", "finite", "bits"]


def _goal(comparison: Compared) -> Goal:
    """What the cause must do: compiled code does what is written, the replay collapses, modules come within their
    floors, values stay finite, same bits."""
    measured, kind = comparison.measured, comparison.verdict.kind
    if measured.miscompiled:
        return "written"
    if kind in (Kind.POLICY, Kind.SEMANTIC) and measured.by_replay:
        return "replay"
    if measured.nonfinite:
        return "finite"
    return "own" if measured.beyond else "bits"


class _Result(NamedTuple):
    counterfactual: Counterfactual
    tried: Tried
    closes: bool


def _rank(result: _Result) -> tuple[bool, bool, float, float]:
    tried = result.tried
    replay = math.inf if math.isnan(tried.replay) else tried.replay
    closed = -math.inf if math.isnan(tried.native_closed) else tried.native_closed
    return not result.closes, not tried.bitwise, replay, -closed


def _said(error: Exception) -> str:
    """The exception and the first line of what it says."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _both(first: Counterfactual, second: Counterfactual) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with first.apply(pair) as once, second.apply(once) as twice:
            yield twice

    return Counterfactual(f"{first.name}; and {second.name}", f"{first.fix}; and {second.fix}", first.group, apply)
