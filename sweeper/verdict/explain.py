"""Says in a sentence what the difference comes from: what closes it, where it starts, what to type."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from sweeper.verdict.causes.code import differing_config
from sweeper.verdict.causes.counterfactual import Pair
from sweeper.verdict.compared import Compared
from sweeper.verdict.first_divergence import FirstDivergence
from sweeper.verdict.repeatability import Random, settled
from sweeper.verdict.rules import Kind
from sweeper.verdict.search import Search, Tried


@dataclass(frozen=True)
class Explanation:
    """What was found.

    Attributes:
        cause: a sentence that a user can act on.
        closing: what closes the difference, or None.
        since: the first module that what closes it changes; without any, the comparison's first divergence.
        tried: all that was run, best first.
        unexplored: what could not be looked into, with the module and the exception.
    """

    cause: str
    closing: Tried | None
    since: FirstDivergence | None
    tried: tuple[Tried, ...]
    unexplored: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return "\n".join([self.cause, *(f"  {tried}" for tried in self.tried)])


def explain(comparison: Compared) -> Explanation:
    """Tries what differs, narrowest and likeliest first, until something closes the difference.

    Raises:
        torch.OutOfMemoryError, MemoryError: memory ran out. No other exception ends it: `unexplored` says what did not
            work.
    """
    if comparison.left is not None:
        return _explain_random(comparison, comparison.left)
    if comparison.verdict.kind is Kind.IDENTICAL:
        return Explanation("nothing differs: every compared tensor has the same bits", None, None, ())
    if comparison.measured.native == 0 and comparison.verdict.kind is Kind.ROUNDING:
        first = comparison.first_divergence
        return Explanation(f"the outputs have the same bits; inside, what differs is {first}", None, first, ())
    search = Search(comparison)
    closing = search.search()
    since = (search.since() if closing is not None else None) or comparison.first_divergence
    tried, unexplored = tuple(search.tried), tuple(search.unexplored)
    cause = _sentence(comparison, closing, since, search) + _overflow(comparison)
    if closing is None and unexplored:
        cause = f"{cause} Could not look into: {'; '.join(unexplored)}."
    return Explanation(cause, closing, since, tried, unexplored)


def _explain_random(comparison: Compared, left: Compared) -> Explanation:
    """Who is random and why; then the cause of what is left once both sides repeat."""
    found = comparison.random
    with settled(comparison.reference, comparison.candidate, found):
        rest = explain(left)
    clauses = "; ".join(map(str, found))
    tried = Tried(f"training mode: {clauses}", _fix(found), "training")
    if left.verdict.kind is Kind.IDENTICAL:
        closing, then = replace(tried, native=0.0, native_closed=1.0, bitwise=True), "the two are identical"
    else:
        closing, then = None, f"what is left is {left.verdict.kind}: {rest.cause.removesuffix(chr(46))}"
    name = tried.name if all(random.settles for random in found) else clauses
    cause = f"{name}. To put back: {tried.fix}; then {then}."
    since = comparison.first_divergence
    return Explanation(cause, closing or rest.closing, since, rest.tried, rest.unexplored)


def _fix(found: tuple[Random, ...]) -> str:
    fixes = [
        f"call {random.side}.eval()"
        if random.settles
        else f"pass the {random.side} what it draws, or seed it before each run"
        for random in found
    ]
    return " and ".join(fixes)


def _overflow(comparison: Compared) -> str:
    """Where values first leave a dtype's range on one side only."""
    for traced, run in ((comparison.native, "runs"), (comparison.replay_trace, "float64 replays")):
        for module in traced.modules if traced is not None else ():
            measures = module.output
            count, ours = measures.nonfinite_mismatch, measures.reference_nan + measures.reference_inf
            theirs = measures.candidate_nan + measures.candidate_inf
            if count:
                whose = "reference" if ours > theirs else "candidate"
                first = f"the first output with other NaN or Inf in the two {run} is that of {module.name}"
                return f" Values overflow: {first} ({count} of {measures.numel} values, most in the {whose})."
    return ""


def _sentence(comparison: Compared, closing: Tried | None, since: FirstDivergence | None, search: Search) -> str:
    measured, tried = comparison.measured, search.tried
    if closing is not None:
        where = f"; {since}" if since is not None else ""
        hint = f" (the configs differ in {', '.join(names)})" if (names := _config_hint(comparison, closing)) else ""
        moved = f"outputs move by rel_l2 {measured.native:.2g}"
        if names := search.moved():
            moved = f"of the outputs, {', '.join(names[:3])} differ, by rel_l2 {measured.native:.2g}"
        return f"{closing.name}{hint}{where}; {moved}. To put back: {closing.fix} ({_proof(comparison, closing)})."
    best = tried[0] if tried and tried[0].native_closed > 0 else None
    most = f"; the most is closed by: {best}" if best is not None else ""
    if comparison.verdict.kind is Kind.ROUNDING:
        floors = f", {measured.native / measured.floor:.2g}x the noise floor" if measured.floor > 0 else ""
        return f"No single change closes it bitwise: rounding{floors}{most}."
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
