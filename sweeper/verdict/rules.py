"""What a difference means: figures in, a verdict out. Definitions, thresholds and sources: `docs/verdict.md`.

Knows no model: everything was measured before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from sweeper.verdict.evidence import Evidence, evidence_of
from sweeper.verdict.measured import Measured
from sweeper.verdict.thresholds import FLOOR_MULTIPLE, KERNEL_MULTIPLE, QUANTISED_MULTIPLE
from sweeper.verdict.wording import some_of


class Kind(StrEnum):
    IDENTICAL = "identical"  # bitwise equal, every compared tensor
    ROUNDING = "rounding"  # the same function, rounded differently
    POLICY = "policy"  # some state was rounded that nobody asked to round
    SEMANTIC = "semantic"  # another function
    INCONCLUSIVE = "inconclusive"  # not enough evidence; `Verdict.decides` says what would be


@dataclass(frozen=True)
class Verdict:
    """Attributes: kind; reason, one clause; evidence; decides, the run that would settle an inconclusive one."""

    kind: Kind
    reason: str
    evidence: tuple[Evidence, ...]
    decides: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def judge(measured: Measured) -> Verdict:
    """The verdict. Size never decides: the replay in higher precision decides, and the floor bounds it."""
    kind, reason, decides = _decide(measured)
    return Verdict(kind, reason, tuple(evidence_of(measured)), decides)


Decision = tuple[Kind, str, str | None]


def _decide(measured: Measured) -> Decision:
    if measured.random:
        return Kind.SEMANTIC, _random_reason(measured), None
    if measured.identical and measured.uncompared:
        names = some_of(tuple(measured.uncompared))
        return Kind.INCONCLUSIVE, f"all else has the same bits, but {names} cannot be compared", "outputs of one kind"
    if measured.identical:
        part = " that both sides give" if measured.partly else ""
        return Kind.IDENTICAL, f"every compared tensor{part} has the same bits", None
    if measured.miscompiled:
        return Kind.SEMANTIC, str(measured.miscompiled[0]), None
    replay = measured.replay
    if replay is None:
        return Kind.INCONCLUSIVE, f"no replay in float64: {measured.replay_error}", "a replay that runs in float64"
    if math.isnan(replay.asked) and measured.nonfinite:
        return Kind.SEMANTIC, f"{measured.nonfinite} values are NaN or infinite on one side only, in float64 too", None
    if math.isnan(replay.asked):
        return Kind.INCONCLUSIVE, "the replay is not finite", "the same inputs in a layout whose replay is finite"
    if replay.collapsed:
        return _collapsed(measured)
    if replay.asked <= replay.weak_bound:
        return (
            Kind.INCONCLUSIVE,
            f"the replay reached {replay.precision}, and what is left lies within that precision's noise",
            "a replay with these operations in float64",
        )
    if replay.policy is not None and replay.policy <= replay.weak_bound:
        return Kind.POLICY, f"{some_of(measured.rounded)} was rounded, and nobody asked for that", None
    return Kind.SEMANTIC, _semantic_reason(measured), None


def _collapsed(measured: Measured) -> Decision:
    """An exemption needs a location: flipped choices and kernels excuse what putting them back takes away."""
    if measured.nonfinite:
        return Kind.SEMANTIC, f"{measured.nonfinite} values leave the range of the candidate's dtype (NaN or Inf)", None
    if measured.beyond:
        return (
            Kind.SEMANTIC,
            f"{measured.beyond[0]}, and in float64 it agrees: that is no rounding",
            None,
        )
    if _within(measured.quantised_kernel, QUANTISED_MULTIPLE):
        return Kind.ROUNDING, f"the same function of weights in {measured.quantised}, which the type declares", None
    bound = FLOOR_MULTIPLE * measured.floor
    if measured.flips and (measured.native <= bound or _within(measured.native_chosen, bound, unknown=True)):
        chosen = f"rounding flips what {measured.flips:.1%} of the tokens choose in {some_of(measured.flipping)}"
        return Kind.ROUNDING, f"the same function; {chosen}", None
    if measured.native <= bound and measured.replay is not None and measured.replay.asked > measured.replay.bound:
        names = some_of(tuple(name or "the model" for name in measured.computed))
        return Kind.ROUNDING, f"the same function; state in {names} was computed from state and stored anew", None
    if measured.native <= bound:
        return Kind.ROUNDING, "the same function, rounded differently", None
    if _within(measured.kernel, KERNEL_MULTIPLE) and _within(measured.native_eager, bound):
        return Kind.ROUNDING, "the same function; the kernel is as exact as eager in the same precision", None
    if measured.native <= FLOOR_MULTIPLE * measured.operations:
        return Kind.ROUNDING, "the same function; its operations round as much between modules, or in products", None
    floors = f"{measured.native / measured.floor:.1f}x above" if measured.floor > 0 else "above"
    return (
        Kind.INCONCLUSIVE,
        f"collapses in the replay, but lies {floors} the native noise floor, and no module stands out",
        "explain(), if a flag did it; else both sides eager, in float32, without flags: a wrong kernel would show",
    )


def _within(value: float | None, bound: float, *, unknown: bool = False) -> bool:
    return unknown if value is None else value <= bound


def _random_reason(measured: Measured) -> str:
    clauses = "; ".join(measured.random)
    if measured.left is None:
        return clauses
    kind, reason, _ = _decide(measured.left)
    return f"{clauses}; once it repeats, what is left is {kind} ({reason})"


def _semantic_reason(measured: Measured) -> str:
    if measured.other:
        return f"other values in {some_of(measured.other)}"
    if measured.missing:
        return f"state that only one side has: {some_of(measured.missing)}"
    return "another function of equal state: the difference stays in float64"
