"""Where two runs part: every module's output and every leaf module's input, in the order of execution.

A difference is *introduced* where a module gives something else on the very input that the reference's module had, and
*inherited* where that input explains it. Where all modules before a leaf agree and its input does not, the difference
was introduced between modules: rotary embedding, mask, attention kernel or a residual.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sweeper.comparator.comparer import layer_and_kind
from sweeper.comparator.observation import Observation, in_pairs, observe
from sweeper.comparator.outputs import ModelOutputs, Outputs, same_bits
from sweeper.comparator.places import Places
from sweeper.comparator.side import Side
from sweeper.metrics.pair import measure, measure_distance
from sweeper.records.cell import PairMeasures

Origin = Literal["introduced", "inherited"]


@dataclass(frozen=True, kw_only=True)
class ModuleDifference:
    """One module's output (and a leaf module's input), compared.

    Attributes:
        order: place in the candidate's order of execution.
        name, module_type, layer, kind: as in `sweeper.records.cell.ModuleRecord`.
        rows: tokens N; texts or batch rows where the output has no token dimension.
        output, input: the figures; `input` is None for what is no leaf module.
        own: rel_l2 of the candidate's module on the reference's input; None where it cannot be had.
    """

    order: int
    name: str
    module_type: str
    layer: int | None
    kind: str
    rows: int
    output: PairMeasures
    input: PairMeasures | None
    own: float | None

    @property
    def origin(self) -> Origin | None:
        """Who introduced it; None: equal, or not known (a composite module, or no floating-point input)."""
        if same(self.output) or self.own is None or self.input is None:
            return None
        return "introduced" if same(self.input) or self.own > self.output.rel_l2 / 2 else "inherited"


def same(measures: PairMeasures) -> bool:
    return measures.equal_fraction == 1


@dataclass(frozen=True)
class Trace:
    """A candidate's run against an observed reference.

    Attributes:
        modules: those that both sides ran, in order of the candidate's execution; where asked so, up to the first that
            differs.
        unaligned: names that only one side ran, or whose rows do not match, with the reason.
        outputs: the candidate's outputs.
        bitwise: what both sides' modules gave has the same bits, as far as they were compared.
    """

    modules: tuple[ModuleDifference, ...]
    unaligned: dict[str, str]
    outputs: ModelOutputs
    bitwise: bool


def trace(reference: Observation, candidate: Side, *, own: bool = True, until: float | None = None) -> Trace:
    """Runs the candidate and compares each module with the observed reference's.

    Args:
        own: also run each leaf module on the reference's input.
        until: as in `compare_runs`.
    """
    ran = observe(candidate, reference.inputs() if own else None, beginning=until is not None)
    return compare_runs(reference, ran, own=own, until=until)


def compare_runs(reference: Observation, ran: Observation, *, own: bool = False, until: float | None = None) -> Trace:
    """Compares each module of an observed candidate with the observed reference's. Where either was too large to be
    kept whole, both run again for what is missing; not for what lies behind the first difference that is asked for.

    Args:
        own: as in `trace`.
        until: measure no module behind the first that differs by more than that (rel_l2; 0: in any bit); None: all.
    """
    unaligned = {name: "only the reference ran it" for name in reference.seen if name not in ran.seen}
    unaligned |= {name: "only the candidate ran it" for name in ran.seen if name not in reference.seen}
    modules: list[ModuleDifference] = []
    bitwise, differed = True, False
    for name, base, module in in_pairs(reference, ran, own=own):
        if base is None or module is None:
            continue
        left, right = torch.cat(base.outputs), torch.cat(module.outputs)
        if left.shape != right.shape:
            unaligned[name] = (
                f"rows and features: {tuple(left.shape)} in the reference, {tuple(right.shape)} in the candidate"
            )
            continue
        bitwise = bitwise and same_bits(left, right)
        if differed:
            if not bitwise:
                break
            continue
        layer, kind = layer_and_kind(name)
        found = ModuleDifference(
            order=len(modules),
            name=name,
            module_type=module.module_type,
            layer=layer,
            kind=kind,
            rows=len(left),
            output=measure(*without_fill(left, right)),
            input=_measured(base.inputs, module.inputs),
            own=_own(left, module.owns),
        )
        modules.append(found)
        differed = until is not None and (_differs(found.input, until) or _differs(found.output, until))
    return Trace(tuple(modules), unaligned, ran.outputs, bitwise)


def _differs(measures: PairMeasures | None, bound: float) -> bool:
    return measures is not None and not same(measures) and not measures.rel_l2 <= bound


def _measured(reference: list[Tensor], candidate: list[Tensor]) -> PairMeasures | None:
    """Measures a pair; None where one side has nothing, or something of another shape."""
    if not reference or not candidate:
        return None
    left, right = torch.cat(reference), torch.cat(candidate)
    return measure(*without_fill(left, right)) if left.shape == right.shape else None


def _own(reference: Tensor, owns: list[Tensor]) -> float | None:
    """The `rel_l2` of what the candidate's module gave on the reference's input; None where there is no such thing."""
    candidate = torch.cat(owns) if owns else None
    return rel_l2(reference, candidate) if candidate is not None and candidate.shape == reference.shape else None


def rel_l2(reference: Tensor, candidate: Tensor) -> float:
    """2-norm of the difference over 2-norm of the reference, in float64, of what decides something: not of what is the
    same NaN, infinity or fill on both sides; NaN where something is not finite on one side only."""
    found = measure_distance(*without_fill(reference, candidate))
    if found.nonfinite_mismatch:
        return math.nan
    return found.rel_l2 if found.finite else 0.0


# A fill (-1e9, the smallest number of a dtype) is so many times as large as all that is none: where it is one number,
# at least once a row; any other, which could be an outlier among activations.
_CONSTANT_FILL, _FILL = 1e2, 1e6


def without_fill(reference: Tensor, candidate: Tensor) -> tuple[Tensor, Tensor]:
    """Both tensors with 0 where they hold the same huge values, which would drown all others in a norm."""
    if not reference.numel() or _largest(reference) < _CONSTANT_FILL:
        return reference, candidate
    size = reference.double().abs()
    size = size.masked_fill(~size.isfinite(), 0)
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (reference, candidate))
    close = (candidate.double() - reference.double()).abs() <= 2 * eps * size
    fill = torch.zeros_like(close)
    while (top := float(size.amax())) >= _CONSTANT_FILL:
        largest = size > top / 2
        rest = size.masked_fill(largest, 0)
        constant = int((size == top).sum()) == int(largest.sum()) >= len(reference)
        huge = top >= (_CONSTANT_FILL if constant else _FILL) * max(float(rest.amax()), 1)
        if not huge or bool((fill | largest).all()) or not bool(close[largest].all()):
            break
        fill, size = fill | largest, rest
    return (reference.masked_fill(fill, 0), candidate.masked_fill(fill, 0)) if fill.any() else (reference, candidate)


_PIECE = 2**22  # elements that are looked at in float64 at once


def _largest(tensor: Tensor) -> float:
    """The largest size of its finite values."""
    if tensor.is_floating_point():
        ends = [end for piece in _unshared(tensor) for end in torch.aminmax(piece)]
        largest = float(torch.stack(ends).abs().amax())
        if math.isfinite(largest):
            return largest
    sizes = (piece.double().abs() for piece in tensor.flatten().split(_PIECE))
    return max(float(size.masked_fill(~size.isfinite(), 0).amax()) for size in sizes)


def _unshared(tensor: Tensor) -> Sequence[Tensor]:
    """A small tensor on a CPU in pieces that torch does not share among threads: their waiting takes longer."""
    small = tensor.device.type == "cpu" and tensor.numel() <= 2**18 and tensor.is_contiguous()
    return tensor.view(-1).split(2**15) if small else (tensor,)


def outputs_rel_l2(reference: Outputs, candidate: Outputs, *, discrete: bool = True) -> float:
    """The largest `rel_l2` over the outputs that both sides gave.

    Args:
        discrete: also of those that are no floating-point numbers; else only where there are no others. Rounding does
            not move them a little: it leaves them alone or flips them.

    Raises:
        KeyError: none is shared.
    """
    shared = [name for name in reference if name in candidate]
    if not shared:
        raise KeyError(
            f"outputs {list(reference)} in the reference, {list(candidate)} in the candidate: none is shared"
        )
    if not discrete and isinstance(reference, ModelOutputs):
        shared = [name for name in shared if not reference.is_discrete(name)] or shared
    values = torch.tensor([rel_l2(reference[name], candidate[name]) for name in shared], dtype=torch.float64)
    return float(values.amax())  # NaN wins


def nonfinite(reference: Outputs, candidate: Outputs) -> int:
    """How many values are NaN or infinite on one side and not the same on the other, of the outputs that both gave."""
    shared = [name for name in reference if name in candidate]
    return sum(measure_distance(reference[name], candidate[name]).nonfinite_mismatch for name in shared)


@dataclass(frozen=True, kw_only=True)
class FirstDivergence:
    """The first place, in order of execution, that is not the same.

    Attributes:
        module: qualified name. layer: its layer, or None.
        place: `output`, or `input`: every module before agrees, and what this one is given does not.
        origin: introduced here, or inherited.
        measures: of that output or input.
        text, position: the token with the largest difference; no position where the output has no token dimension.
    """

    module: str
    layer: int | None
    place: Literal["output", "input"]
    origin: Origin
    measures: PairMeasures
    text: int | None
    position: int | None

    def __str__(self) -> str:
        where = self.module if self.place == "output" else f"the input of {self.module} (all modules before it agree)"
        token = f" token {self.position}" if self.position is not None else ""
        most = f", most at text {self.text}{token}" if self.text is not None else ""
        return f"{self.origin} at {where}{most}: rel_l2 {self.measures.rel_l2:.2g}"


def first_divergence(
    modules: tuple[ModuleDifference, ...], lengths: list[int], bound: float = 0.0
) -> FirstDivergence | None:
    """The first module that differs by more than `bound` (rel_l2; 0: in any bit); None where none does."""

    for module in modules:
        between = _differs(module.input, bound)
        if not between and not _differs(module.output, bound):
            continue
        measures = module.input if between and module.input is not None else module.output
        text, position = Places(lengths).locate(measures.worst_token, module.rows)
        return FirstDivergence(
            module=module.name,
            layer=module.layer,
            place="input" if between else "output",
            origin="introduced" if between else module.origin or "introduced",
            measures=measures,
            text=text,
            position=position,
        )
    return None
