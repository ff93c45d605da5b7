"""The measures of `pair.py` on a GPU: one pass over each pair, many pairs a launch. Needs Triton.

`pair.py` defines every figure; this fills the same `State`. Counts, maxima, ULPs and places are equal to it; sums,
which are float64 here too, up to the order of additions. That order depends on shapes, strides and alignment alone, and
there are no atomics, so the same tensors give the same bits. Nothing synchronises with the device.

The kernels are in `kernels.py` and `joining.py`. Shapes: N tokens, F features.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl

from sweeper.metrics import joining, kernels
from sweeper.metrics.precision import coarser_dtype, default_tolerance
from sweeper.metrics.state import Pair
from sweeper.metrics.tables import Tables

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Elements that one warp measures: enough that its partial costs nothing, few enough that a layer fills the device.
_ELEMENTS_A_WARP = 2**15
# A warp a program, so that no barrier is needed; no more registers than 20 warps a multiprocessor have.
_OPTIONS = {"num_warps": 1, "maxnreg": 96}
_TRITON = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


class _Kind(NamedTuple):
    """What one launch is compiled for. Aligned: every lane's eight elements are whole 16-byte words."""

    reference: torch.dtype
    candidate: torch.dtype
    aligned: bool


class _Place(NamedTuple):
    """Where the two tensors are: the first columns of the pairs' table."""

    reference: int
    candidate: int
    N: int
    F: int
    reference_row: int
    reference_column: int
    candidate_row: int
    candidate_column: int


class _Target(NamedTuple):
    """A pair, and the addresses of the state that it is added to."""

    place: _Place
    reals: int
    counts: int


class _Plan(NamedTuple):
    """Of one launch: the pairs' table and, from `targets` on, that of the targets."""

    numbers: list[int]
    targets: int
    pairs: int
    partials: int
    most_warps: int


def update(pairs: Sequence[Pair], tables: Tables | None = None) -> None:
    """Adds each pair's rows to its state, in place; of pairs that share a state, one after the other.

    Pairs that are the same memory on both sides (a block that returns its last module's output) are read once.
    """
    tables = tables or Tables()
    launches: dict[tuple[int, _Kind], list[_Target]] = {}
    turns: Counter[int] = Counter()  # a state takes part once a launch
    for state, reference, candidate in pairs:
        place = _Place(
            reference.data_ptr(),
            candidate.data_ptr(),
            *reference.shape,
            *reference.stride(),
            *candidate.stride(),
        )
        target = _Target(place, state.reals.data_ptr(), state.counts.data_ptr())
        kind = _Kind(reference.dtype, candidate.dtype, _is_aligned(place))
        launches.setdefault((turns[target.reals], kind), []).append(target)
        turns[target.reals] += 1
    for (_, kind), targets in sorted(launches.items(), key=lambda launch: launch[0][0]):
        _launch(_plan(tuple(targets)), kind, len(targets), tables, pairs[0].reference_NF.device)


def _is_aligned(place: _Place) -> bool:
    return (
        place.reference_column == place.candidate_column == 1
        and (place.F | place.reference_row | place.candidate_row) % 8 == 0
        and (place.reference | place.candidate) % 16 == 0
    )


@functools.lru_cache(maxsize=256)  # batches of one shape mostly have the addresses of the one before
def _plan(targets: tuple[_Target, ...]) -> _Plan:
    indices: dict[_Place, int] = {}
    pair_table: list[int] = []
    target_table: list[int] = []
    partials = most_warps = 0
    tile = kernels.ROWS_A_TILE.value
    for place, reals, counts in targets:
        if place not in indices:
            indices[place] = len(indices)
            rows = max(1, _ELEMENTS_A_WARP // (tile * place.F)) * tile
            pair_table += (*place, rows, partials)
            warps = -(-place.N // rows)
            partials += warps
            most_warps = max(most_warps, warps)
        target_table += (indices[place], reals, counts)
    return _Plan(pair_table + target_table, len(pair_table), len(indices), partials, most_warps)


def _launch(plan: _Plan, kind: _Kind, targets: int, tables: Tables, device: torch.device) -> None:
    table = tables.place(plan.numbers, device)
    reals = torch.empty(kernels.PARTIAL_REALS.value * plan.partials, dtype=torch.float64, device=device)
    counts = torch.empty(kernels.PARTIAL_COUNTS.value * plan.partials, dtype=torch.int64, device=device)
    coarser = coarser_dtype(kind.reference, kind.candidate)
    meta: dict[str, Any] = {"REFERENCE": _TRITON[kind.reference], "CANDIDATE": _TRITON[kind.candidate]}
    with torch.cuda.device_of(table):
        kernels.measure[(plan.most_warps, plan.pairs)](
            *(table, reals, counts, plan.partials),
            **meta,
            COARSER=_TRITON[coarser],
            RTOL=default_tolerance(coarser).rtol,
            ALIGNED=kind.aligned,
            **_OPTIONS,
        )
        joining.join[(targets,)](table, table[plan.targets :], reals, counts, plan.partials, **meta, num_warps=8)
