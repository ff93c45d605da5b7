"""What a difference means: figures in, a verdict out. Definitions, thresholds and sources: `docs/verdict.md`.

Knows no model: everything was measured before.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import StrEnum

from sweeper.records.verdict import LEFT_OUT

# How far above the replay's own noise a replayed difference may lie and still count as collapsed.
COLLAPSE_MULTIPLE = 64.0
# How far above the native noise floor rounding may lie.
FLOOR_MULTIPLE = 4.0
# flash-attention's tests allow its kernels twice the error of the same-precision reference implementation.
KERNEL_MULTIPLE = 2.0
# How many of its own floors a module may lie from the reference's on the same arguments and still count as rounding.
OWN_MULTIPLE = 4.0
# How far above what storing its weights costs a feature may lie: the largest of thousands, each over few tokens.
STORED_MULTIPLE = 8.0
# Quantised kernels also round activations, about as coarsely as the weights: how much further their error may go.
QUANTISED_MULTIPLE = 8.0
FLOAT64_EPS = 2.0**-52


class Kind(StrEnum):
    IDENTICAL = "identical"  # bitwise equal, every compared tensor
    ROUNDING = "rounding"  # the same function, rounded differently
    POLICY = "policy"  # some state was rounded that nobody asked to round
    SEMANTIC = "semantic"  # another function
    INCONCLUSIVE = "inconclusive"  # not enough evidence; `Verdict.decides` says what would be


@dataclass(frozen=True)
class Evidence:
    """One figure: what was measured, its value, and what that means."""

    name: str
    value: float | str
    meaning: str

    def __str__(self) -> str:
        value = f"{self.value:.3g}" if isinstance(self.value, float) else self.value
        return f"{self.name} = {value}: {self.meaning}"


@dataclass(frozen=True)
class Verdict:
    """Attributes: kind; reason, one clause; evidence; decides, the run that would settle an inconclusive one."""

    kind: Kind
    reason: str
    evidence: tuple[Evidence, ...]
    decides: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """The replay of both sides. All differences are rel_l2 of the outputs.

    Attributes:
        precision: which precision it reached, in words. eps: the machine epsilon of what it can tell apart.
        as_loaded: with every tensor as it was loaded; None where only `asked` was run.
        asked: with the rounding that the dtype asked for undone; `as_loaded` where none was asked for.
        policy: with tensors put back that were rounded without being asked; None where there is none, or it collapses
            without.
        computed: as `asked`, with the reference's modules where state that was computed from state explains it.
        noise: of the replay itself, under nudges of one float64 ULP; 0 where it collapses without.
        texts: `asked` text by text.
        positions: `asked` at position 0, at 1, at 2 and 3, at 4 to 7, and so on; empty where positions are not known.
    """

    precision: str
    eps: float
    as_loaded: float | None
    asked: float
    policy: float | None
    noise: float
    computed: float | None = None
    texts: tuple[float, ...] = ()
    positions: tuple[float, ...] = ()

    @property
    def collapsed(self) -> bool:
        """Nothing is left but noise, outside state that was computed from state."""
        return self.asked <= self.bound or (self.computed is not None and self.computed <= self.bound)

    @property
    def bound(self) -> float:
        """What counts as collapsed."""
        return COLLAPSE_MULTIPLE * max(self.noise, FLOAT64_EPS)

    @property
    def weak_bound(self) -> float:
        """The same where operations stayed in a lower precision."""
        return self.bound * self.eps / FLOAT64_EPS


@dataclass(frozen=True, kw_only=True)
class OwnError:
    """One module of the candidate on the arguments that the reference's had.

    Attributes:
        name: of the module; empty for the model itself.
        own: rel_l2 of its output from the reference's.
        floor: how far rounding in it moves its output; NaN where `own` is too small to ask.
        replayed: `own` in the float64 replay; NaN where it was not needed.
        kernel: error of its attention kernel over that of eager attention; None: no kernel, or eager differs as well.
        dtype: of its output.
    """

    name: str
    own: float
    floor: float = math.nan
    replayed: float = math.nan
    kernel: float | None = None
    dtype: str

    @property
    def floors(self) -> float:
        """How many of its floors it lies up; NaN where they are too few to be counted."""
        return self.own / self.floor if self.floor != 0 else math.inf if self.own > 0 else 0.0

    def worse_than(self, other: OwnError) -> bool:
        """Whether it is the worse of two calls of one module."""
        mine, theirs = (0.0 if math.isnan(one.floor) else one.floors for one in (self, other))
        return (mine, self.own) > (theirs, other.own)

    def __str__(self) -> str:
        where = self.name if self.name else "the model itself"
        if self.kernel is not None:
            times = f"{self.kernel:.2g} times as far off as eager attention"
            return f"the attention kernel in {where} is {times} on the same input"
        return f"{where} lies {self.floors:.3g} of its own floors up on the reference's input ({self.dtype})"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Everything that a verdict rests on.

    Attributes:
        identical: every compared tensor has the same bits.
        partly: outputs that are compared in part or on one side only, with what is left out.
        uncompared: outputs of both sides that cannot be compared, with the reason.
        native: rel_l2 of the outputs as they ran. nonfinite: NaN or Inf where the other side has none.
        floor, floor_spread, floor_samples: the noise floor of the noisier side.
        rebatched: rel_l2 of the same side in other batch shapes, by what was done.
        layers: the same ratio, native over floor, of each layer's output: rounding grows as the floor does.
        random: what does not give the same output twice, a clause a side. left: the figures once it does.
        training: how many modules are in training mode, by side.
        replay: None where the replay failed; `replay_error` says why.
        asked: the dtypes asked for, e.g. `float32 -> bfloat16`; None where they are the same.
        rounded, other: names of tensors rounded without being asked, and of those that hold other values.
        missing: names of state that only one side has.
        computed: modules whose state was computed from state, with their distance over what storing it costs.
        flips: share of tokens with another choice of experts; None where nothing is chosen.
        flipping: names of the modules that chose otherwise.
        quantised: what a side's weights are stored as, e.g. `int8`, where its type declares that.
        quantised_kernel: how far the quantised side's kernels move the outputs over how far its weights do.
        kernel: error of a kernel to the replay over that of eager in the same precision; None where it was not needed.
        native_eager: `native` with the candidate's attention eager; None where it was not needed.
        native_chosen: `native` with the reference's discrete choices; None where it was not needed or cannot be had.
        operations: the floor of the outputs under nudges of every operation; NaN where it was not needed.
        beyond: modules whose own error is no rounding, though the replay collapses.
        examined: how many modules were run on the reference's arguments; `unexamined` says why none was.
        left_out: evidence that nothing depended on, and that was not gathered.
    """

    identical: bool
    native: float
    nonfinite: int = 0
    floor: float = math.nan
    floor_spread: tuple[float, float] = (math.nan, math.nan)
    floor_samples: int = 0
    rebatched: dict[str, float] = field(default_factory=dict)
    layers: tuple[float, ...] = ()
    random: tuple[str, ...] = ()
    left: Measured | None = None
    training: dict[str, int] = field(default_factory=dict)
    replay: Replayed | None = None
    replay_error: str | None = None
    asked: str | None = None
    rounded: tuple[str, ...] = ()
    other: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    computed: dict[str, float] = field(default_factory=dict)
    flips: float | None = None
    flipping: tuple[str, ...] = ()
    quantised: str | None = None
    quantised_kernel: float | None = None
    kernel: float | None = None
    partly: dict[str, str] = field(default_factory=dict)
    uncompared: dict[str, str] = field(default_factory=dict)
    native_eager: float | None = None
    native_chosen: float | None = None
    operations: float = math.nan
    beyond: tuple[OwnError, ...] = ()
    examined: int = 0
    unexamined: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def repeatable(self) -> bool:
        """Both sides give the same output twice."""
        return not self.random

    @property
    def by_replay(self) -> bool:
        """The replay shows a difference, so that what closes it there is the cause."""
        return self.replay is not None and not self.replay.collapsed


def judge(measured: Measured) -> Verdict:
    """The verdict. Size never decides: the replay in higher precision decides, and the floor bounds it."""
    kind, reason, decides = _decide(measured)
    return Verdict(kind, reason, tuple(_evidence(measured)), decides)


Decision = tuple[Kind, str, str | None]


def _decide(measured: Measured) -> Decision:
    if measured.random:
        return Kind.SEMANTIC, _random_reason(measured), None
    if measured.identical and measured.uncompared:
        names = _some(tuple(measured.uncompared))
        return Kind.INCONCLUSIVE, f"all else has the same bits, but {names} cannot be compared", "outputs of one kind"
    if measured.identical:
        part = " that both sides give" if measured.partly else ""
        return Kind.IDENTICAL, f"every compared tensor{part} has the same bits", None
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
        return Kind.POLICY, f"{_some(measured.rounded)} was rounded, and nobody asked for that", None
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
        chosen = f"rounding flips what {measured.flips:.1%} of the tokens choose in {_some(measured.flipping)}"
        return Kind.ROUNDING, f"the same function; {chosen}", None
    if measured.native <= bound and measured.replay is not None and measured.replay.asked > measured.replay.bound:
        names = _some(tuple(name or "the model" for name in measured.computed))
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
        return f"other values in {_some(measured.other)}"
    if measured.missing:
        return f"state that only one side has: {_some(measured.missing)}"
    return "another function of equal state: the difference stays in float64"


def _evidence(measured: Measured) -> list[Evidence]:
    native = "difference of the outputs as they ran; decides nothing alone"
    found = [Evidence("repeatable", "no", clause) for clause in measured.random]
    found.append(Evidence("native rel_l2", measured.native, native))
    for title, outputs in (("compared in part", measured.partly), ("not compared", measured.uncompared)):
        found += [Evidence(title, name, reason) for name, reason in outputs.items()]
    for side, count in measured.training.items():
        found.append(Evidence("training mode", float(count), f"modules of the {side}"))
    if measured.left is not None:
        return found + [replace(one, name=f"once it repeats: {one.name}") for one in _evidence(measured.left)]
    if measured.nonfinite:
        found.append(Evidence("non-finite", float(measured.nonfinite), "NaN or Inf on one side only"))
    if measured.floor_samples:
        low, high = measured.floor_spread
        runs = "one run" if measured.floor_samples == 1 else f"{measured.floor_samples} runs"
        meaning = f"{runs} with every module nudged by up to one ULP, {low:.2g} to {high:.2g}"
        found.append(Evidence("noise floor rel_l2", measured.floor, meaning))
        found += [
            Evidence(f"rel_l2 with {name}", value, "same model, same texts")
            for name, value in measured.rebatched.items()
        ]
        if measured.floor > 0:
            ratio = measured.native / measured.floor
            found.append(Evidence("native over floor", ratio, f"rounding stays below {FLOOR_MULTIPLE:.0f}"))
    if measured.layers:
        ratios = ", ".join(f"{ratio:.2g}" for ratio in measured.layers)
        found.append(
            Evidence("native over floor by layer", ratios, "rounding grows from layer to layer as the floor does")
        )
    if measured.replay is not None:
        found += _replay_evidence(measured, measured.replay)
    state = {"rounded unasked": measured.rounded, "other values": measured.other, "on one side only": measured.missing}
    for name, names in state.items():
        if names:
            found.append(Evidence(name, float(len(names)), _some(names)))
    if measured.flips is not None:
        where = f", in {_some(measured.flipping)}" if measured.flipping else ""
        meaning = f"share of tokens for which top-k or argmax chose otherwise{where}"
        found.append(Evidence("flipped choices", measured.flips, meaning))
    found += _located_evidence(measured)
    if measured.left_out:
        meaning = "the verdict does not depend on it; verdict=full gathers it"
        found.append(Evidence(LEFT_OUT, ", ".join(measured.left_out), meaning))
    return found


def _located_evidence(measured: Measured) -> list[Evidence]:
    """What was put back, or run alone, because the outputs do not tell where a native difference comes from."""
    found = []
    if measured.native_chosen is not None:
        meaning = "the candidate with the reference's choices"
        found.append(Evidence("native rel_l2, choices put back", measured.native_chosen, meaning))
    if measured.quantised_kernel is not None:
        kernels = f"the kernels move them {measured.quantised_kernel:.2g} times as far as the weights"
        meaning = f"how far the outputs move; {kernels}, up to {QUANTISED_MULTIPLE:.0f} is rounding"
        found.append(Evidence(f"asked: {measured.quantised}", measured.native, meaning))
    if measured.kernel is not None:
        found.append(Evidence("kernel error over eager's", measured.kernel, f"up to {KERNEL_MULTIPLE:.0f} is rounding"))
    if measured.native_eager is not None:
        found.append(Evidence("native rel_l2, eager", measured.native_eager, "the candidate with eager attention"))
    if not math.isnan(measured.operations):
        meaning = "every operation nudged by up to one ULP, products by what the flags in force cost"
        found.append(Evidence("noise floor of operations", measured.operations, meaning))
    if measured.examined:
        far = "; ".join(map(str, measured.beyond[:3])) if measured.beyond else "none stands out"
        meaning = f"modules run on the reference's arguments, rounding stays below {OWN_MULTIPLE:.0f} own floors: {far}"
        found.append(Evidence("examined", float(measured.examined), meaning))
    if measured.unexamined:
        found.append(Evidence("examined", 0.0, f"no module could be run alone: {measured.unexamined}"))
    return found


def _replay_evidence(measured: Measured, replay: Replayed) -> list[Evidence]:
    found = [Evidence("replay precision", "float64" if replay.eps == FLOAT64_EPS else "mixed", replay.precision)]
    collapsed = f"; collapsed is below {replay.bound:.2g}"
    if replay.as_loaded is not None:
        found.append(Evidence("replay rel_l2", replay.as_loaded, f"both sides as loaded{collapsed}"))
        collapsed = ""
    if measured.asked:
        meaning = f"the dtype asked for: {measured.asked}{collapsed}"
        found.append(Evidence("replay, asked rounding undone", replay.asked, meaning))
    for name, distance in measured.computed.items():
        meaning = f"in float64, over what storing the weights of {name or 'the model'} costs a feature"
        found.append(Evidence("computed state", distance, f"{meaning}; up to {STORED_MULTIPLE:.0f} is rounding"))
    if replay.computed is not None:
        found.append(Evidence("replay, computed state put back", replay.computed, "what differs outside these modules"))
    if replay.policy is not None:
        found.append(Evidence("replay, unasked rounding undone", replay.policy, _some(measured.rounded)))
    if replay.asked > replay.bound and len(replay.texts) > 1:
        texts = ", ".join(f"{value:.2g}" for value in replay.texts[:8])
        clean = replay.texts[0] <= replay.bound and max(replay.texts[1:]) > replay.bound
        meaning = (
            "the first is untouched, later ones are not: a leak between texts, or pads that are read"
            if clean
            else "none stands out"
        )
        found.append(Evidence("replay rel_l2 by text", texts, meaning))
    first, later = replay.positions[:1], replay.positions[1:]
    if later and first[0] <= replay.bound < max(later):
        shown = ", ".join(f"{value:.2g}" for value in replay.positions)
        grows = " and growing" if list(later) == sorted(later) else ""
        meaning = f"at 0, 1, 2-3, 4-7, ...; exact at position 0{grows}: positions or their table"
        found.append(Evidence("replay rel_l2 by position", shown, meaning))
    return found


def _some(names: tuple[str, ...], limit: int = 3) -> str:
    shown = ", ".join(names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
