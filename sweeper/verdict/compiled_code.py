"""Compiled code against the same code as it is written: the same model and weights, the same calls, the same dtype.

The float64 replay runs what is written, on both sides, so that a fault of a compiler is in none of its figures. What a
compiler may change is rounding: by no more than the noise floor natively. In 16 bits that floor hides much, so that the
code is compiled once more, for float64, where next to nothing may be left.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sweeper.comparator.side import Outputs, Side, run, uncompiled_side
from sweeper.config import Compile
from sweeper.models.compiled import NAME, compiles, many_variants
from sweeper.models.quantised import quantised_state
from sweeper.models.swapping import Source
from sweeper.verdict.discrete_choices import choices_of
from sweeper.verdict.first_divergence import outputs_rel_l2
from sweeper.verdict.float64_replay import Noted, Precision, in_float64
from sweeper.verdict.measured import CompiledCode
from sweeper.verdict.module_runs import autocast_in_force
from sweeper.verdict.noise_floor import Floor, raise_floor
from sweeper.verdict.own_errors import Natively
from sweeper.verdict.state_changes import Provenance
from sweeper.verdict.thresholds import COLLAPSE_MULTIPLE, FLOOR_MULTIPLE

_FLOAT32_EPS = torch.finfo(torch.float32).eps


def compiled_code(side: Side, name: str, outputs: Outputs) -> CompiledCode | None:
    """How far a side's compiled code is off what is written; None where it runs as it is written.

    Args:
        name: `reference` or `candidate`.
        outputs: of a run of the side.
    """
    written = uncompiled_side(side)
    if written is side:
        return None
    expected = run(written)
    native = outputs_rel_l2(expected, outputs, discrete=False)
    code = CompiledCode(side=name, how=how_compiled(side), native=native)
    if native == 0:
        return code
    code = replace(code, floor=_floor(written, expected, native))
    if not native <= FLOOR_MULTIPLE * code.floor:
        code = replace(code, chooses=bool(choices_of(written)))
    return in_float64_too(side, code)


def how_compiled(side: Side) -> str:
    """What made the compiled code of a side, as a user typed it."""
    return side.switches[NAME].fix if compiles(side.switches) else "torch.compile"


def again(side: Side, code: CompiledCode) -> CompiledCode:
    """The same of a side that runs otherwise now, by the floors that are known."""
    written = uncompiled_side(side)
    if written is side:
        return replace(code, native=0.0, exact=None)
    with many_variants():
        native = outputs_rel_l2(run(written), run(side), discrete=False)
    now = replace(code, how=how_compiled(side), native=native)
    return now if code.exact is None else in_float64_too(side, now)


def _floor(written: Side, outputs: Outputs, native: float) -> float:
    """How far rounding moves the outputs of what is written, as far as it matters: in modules, then in operations."""
    floor = Floor()
    if raise_floor(floor, written, outputs, native / FLOOR_MULTIPLE):
        return floor.level
    operations = Natively(written, written, Provenance(), {""}).operations_floor()
    return max(floor.level, operations) if operations == operations else floor.level


def in_float64_too(side: Side, code: CompiledCode) -> CompiledCode:
    """The same with the comparison in float64, where it can be run and tells more than the native one; two runs."""
    eps = _coarsest(side)
    if eps <= _FLOAT32_EPS and not code.chooses:
        return code
    if reason := _only_as_it_is(side):
        return replace(code, not_exact=reason)
    precision = Precision()
    try:
        with in_float64(side) as exact, many_variants():
            with Noted(precision):
                expected = run(uncompiled_side(exact))
            if precision.eps > _FLOAT32_EPS:
                return replace(code, not_exact=f"the code stays below float32: {precision}")
            found = outputs_rel_l2(expected, run(exact), discrete=False)
    except Exception as error:  # memory too: natively it is judged all the same
        cause = getattr(error, "inner_exception", error)  # what a backend raises, dynamo wraps
        return replace(code, not_exact=f"{type(cause).__name__}: {cause}".splitlines()[0])
    bound = COLLAPSE_MULTIPLE * max(code.floor / eps, 1) * _FLOAT32_EPS
    return replace(code, exact=found, exact_bound=bound)


def _coarsest(side: Side) -> float:
    """The machine epsilon of the coarsest parameters, buffers or arguments, or of what autocast makes of them."""
    given = tree_leaves([call.kwargs for call in side.calls])
    state = itertools.chain(side.model.parameters(), side.model.buffers(), given)
    dtypes = {tensor.dtype for tensor in state if isinstance(tensor, Tensor) and tensor.is_floating_point()}
    with side.conditions():
        dtypes |= {dtype for dtype in autocast_in_force() if dtype is not None}
    return max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)


def _only_as_it_is(side: Side) -> str | None:
    """Why code is not compiled for float64 as well."""
    if compiles(side.switches) and side.switches[NAME].value == Compile.MAX_AUTOTUNE:
        return "tuned kernels are those of a dtype, and tuning takes minutes"
    if any(True for module in side.model.modules() for _ in quantised_state(module)):
        return "its weights are quantised"
    if any(Source.of(parameter) is not None for parameter in side.model.parameters()):
        return "its weights are streamed"
    return None
