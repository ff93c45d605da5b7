"""The figures that a verdict is made of. Where each is measured: `gathering.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from sweeper.verdict.thresholds import COLLAPSE_MULTIPLE, FLOAT64_EPS, FLOOR_MULTIPLE


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
class CompiledCode:
    """The compiled code of one side against the same code as it is written: same model, calls and dtype.

    Attributes:
        side: `reference` or `candidate`. how: what compiled it, e.g. `compile=inductor`.
        native: rel_l2 of the outputs; NaN where one of them alone is not finite.
        floor: how far rounding moves the outputs of the code as it is written; NaN where `native` is 0.
        chooses: the model chooses (top-k, argmax), which a last place can turn; looked at above the floor only.
        exact: as `native`, with both in float64, but for what the code fixes to float32; None where it was not run.
        exact_bound: up to which that is what float32 rounds.
        not_exact: why it was not run.
    """

    side: str
    how: str
    native: float
    floor: float = math.nan
    chooses: bool = False
    exact: float | None = None
    exact_bound: float = math.nan
    not_exact: str | None = None

    @property
    def other_function(self) -> bool:
        """No rounding makes that: natively above the floor, unless choices may have turned; or in float64."""
        if self.exact is not None and not self.exact <= self.exact_bound:
            return True
        return not self.chooses and not self.native <= FLOOR_MULTIPLE * self.floor and self.native != 0

    def __str__(self) -> str:
        code = f"the {self.side}'s compiled code ({self.how})"
        if self.exact is not None and not self.exact <= self.exact_bound:
            far = f"{self.exact:.2g}, where rounding stays below {self.exact_bound:.2g}"
            return f"{code} differs from what is written in float64 too, by {far}"
        floors = f"{self.native / self.floor:.3g} noise floors" if self.floor else f"{self.native:.2g}"
        return f"{code} differs from the same code as it is written by {floors}"


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
        compiled: the sides that run compiled code, against the same code as it is written.
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
    compiled: tuple[CompiledCode, ...] = ()
    beyond: tuple[OwnError, ...] = ()
    examined: int = 0
    unexamined: str | None = None
    left_out: tuple[str, ...] = ()

    @property
    def miscompiled(self) -> tuple[CompiledCode, ...]:
        """Those whose compiled code is another function than what is written."""
        return tuple(code for code in self.compiled if code.other_function)

    @property
    def by_replay(self) -> bool:
        """The replay shows a difference, so that what closes it there is the cause."""
        return self.replay is not None and not self.replay.collapsed
