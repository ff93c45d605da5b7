"""Where two runs part: every module's output and every leaf module's input, in the order of execution.

A difference is *introduced* where a module gives something else on the very input that the reference's module had, and
*inherited* where that input explains it. Where all modules before a leaf agree and its input does not, the difference
was introduced between modules: rotary embedding, mask, attention kernel or a residual.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sweeper.comparator.comparer import layer_and_kind
from sweeper.comparator.recording import Event, Listener, Recorded, Recording, keep_pooling, listening
from sweeper.comparator.side import Call, Outputs, Side, run
from sweeper.metrics.pair import measure
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
        """None: equal, or not known (a composite module, or one without a floating-point input)."""
        if same(self.output) or self.own is None or self.input is None:
            return None
        return "introduced" if same(self.input) or self.own > self.output.rel_l2 / 2 else "inherited"


def same(measures: PairMeasures) -> bool:
    return measures.equal_fraction == 1


@dataclass(frozen=True)
class Trace:
    """A candidate's run against a recorded reference.

    Attributes:
        modules: those that both sides ran, in order of the candidate's execution.
        unaligned: names that only one side ran, or whose rows do not match, with the reason.
        outputs: the candidate's outputs.
    """

    modules: tuple[ModuleDifference, ...]
    unaligned: dict[str, str]
    outputs: Outputs


def trace(reference: Recording, candidate: Side, *, own: bool = True) -> Trace:
    """Runs the candidate and compares each module with the recorded reference's.

    Args:
        own: also run each leaf module on the reference's input.
    """
    done: Counter[str] = Counter()
    seen: dict[str, Recorded] = {}
    owns: dict[str, list[Tensor]] = {}
    current: list[Call] = []
    inputs = {name: recorded.input() for name, recorded in reference.modules.items()} if own else {}

    def rerun(name: str) -> Tensor | None:
        given, start = inputs.get(name), done[name]
        return given[start : start + len(current[-1].forward.flat_N)] if given is not None else None

    def take(event: Event) -> None:
        recorded = seen.setdefault(event.name, Recorded(type(event.module).__name__))
        recorded.outputs.append(event.output_NF.clone())
        if event.input_NF is not None and "[" not in event.name:
            recorded.inputs.append(event.input_NF.clone())
        if event.own_NF is not None:
            owns.setdefault(event.name, []).append(event.own_NF.clone())
        done[event.name] += len(event.output_NF)

    listener = Listener(take, rerun)

    def begin(call: Call) -> None:
        current.append(call)
        listener.begin(call)

    with listening(candidate.model, listener):
        outputs = run(candidate, begin)
    keep_pooling(seen, outputs)
    return _compared(reference, seen, owns, outputs)


def _compared(
    reference: Recording, candidate: dict[str, Recorded], owns: dict[str, list[Tensor]], outputs: Outputs
) -> Trace:
    unaligned = {name: "only the reference ran it" for name in reference.modules if name not in candidate}
    modules: list[ModuleDifference] = []
    for name, recorded in candidate.items():
        base = reference.modules.get(name)
        if base is None:
            unaligned[name] = "only the candidate ran it"
            continue
        left, right = base.output(), recorded.output()
        if left.shape != right.shape:
            unaligned[name] = (
                f"rows and features: {tuple(left.shape)} in the reference, {tuple(right.shape)} in the candidate"
            )
            continue
        layer, kind = layer_and_kind(name)
        modules.append(
            ModuleDifference(
                order=len(modules),
                name=name,
                module_type=recorded.module_type,
                layer=layer,
                kind=kind,
                rows=len(left),
                output=measure(left, right),
                input=_measured(base.input(), recorded.input()),
                own=_own(left, owns.get(name)),
            )
        )
    return Trace(tuple(modules), unaligned, outputs)


def _measured(left: Tensor | None, right: Tensor | None) -> PairMeasures | None:
    return measure(left, right) if left is not None and right is not None and left.shape == right.shape else None


def _own(reference_NF: Tensor, pieces: list[Tensor] | None) -> float | None:
    own_NF = torch.cat(pieces) if pieces else None
    return rel_l2(reference_NF, own_NF) if own_NF is not None and own_NF.shape == reference_NF.shape else None


def rel_l2(reference: Tensor, candidate: Tensor) -> float:
    """2-norm of the difference over 2-norm of the reference, in float64; NaN where one side is not finite."""
    difference = (candidate.double() - reference.double()).norm()
    return float(difference / reference.double().norm()) if difference != 0 else 0.0


def outputs_rel_l2(reference: Outputs, candidate: Outputs) -> float:
    """The largest `rel_l2` over the outputs that both sides gave.

    Raises:
        KeyError: none is shared.
    """
    shared = [name for name in reference if name in candidate]
    if not shared:
        raise KeyError(
            f"outputs {list(reference)} in the reference, {list(candidate)} in the candidate: none is shared"
        )
    values = torch.tensor([rel_l2(reference[name], candidate[name]) for name in shared])
    return float(values.amax())  # NaN wins


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

    def differs(measures: PairMeasures | None) -> bool:
        return measures is not None and not same(measures) and not measures.rel_l2 <= bound

    for module in modules:
        between = module.input is not None and differs(module.input)
        if not between and not differs(module.output):
            continue
        measures = module.input if between and module.input is not None else module.output
        text, position = _locate(measures.worst_token, module.rows, lengths)
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


def _locate(row: int | None, rows: int, lengths: list[int]) -> tuple[int | None, int | None]:
    """Text and token of a row: rows are tokens, or whole texts (pooled)."""
    if row is None:
        return None, None
    if rows == sum(lengths):
        starts = list(itertools.accumulate(lengths, initial=0))
        text = bisect.bisect_right(starts, row) - 1
        return text, row - starts[text]
    return (row, None) if rows == len(lengths) else (None, None)
