"""The measures of `pair.py` on a GPU: one pass over each pair, many pairs a launch. Needs Triton.

`pair.py` defines every figure; this fills the same `State`. Counts, maxima, ULPs and places are equal to it; sums,
which are float64 here too, up to the order of additions. That order depends on shapes, strides and alignment alone, and
there are no atomics, so the same tensors give the same bits. Nothing synchronises with the device.

The kernels are in `kernels.py`. Shapes: N tokens, F features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from sweeper.metrics import kernels
from sweeper.metrics.precision import coarser_dtype, default_tolerance
from sweeper.metrics.state import State
from sweeper.metrics.tables import Tables

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Elements that one warp measures: enough that its partial costs nothing, few enough that a layer fills the device.
_ELEMENTS_A_WARP = 2**15
_TRITON = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


class Pair(NamedTuple):
    """Two tensors [N, F] of at least one element, same shape and device, and the state that they are added to."""

    state: State
    reference_NF: Tensor
    candidate_NF: Tensor


class _Layout(NamedTuple):
    """What one launch is compiled for."""

    reference: torch.dtype
    candidate: torch.dtype
    aligned: bool


def update(pairs: Sequence[Pair], tables: Tables | None = None) -> None:
    """Adds each pair's rows to its state, in place; of pairs that share a state, one after the other.

    Pairs that are the same memory on both sides (a block that returns its last module's output) are read once.
    """
    tables = tables or Tables()
    waiting = list(pairs)
    while waiting:
        layout = _layout(waiting[0])
        group: dict[int, Pair] = {}
        later: list[Pair] = []
        for pair in waiting:
            address = pair.state.reals.data_ptr()
            if not later and address not in group and _layout(pair) == layout:
                group[address] = pair
            else:
                later.append(pair)
        _launch(list(group.values()), layout, tables)
        waiting = later


def _layout(pair: Pair) -> _Layout:
    _, reference, candidate = pair
    aligned = _is_aligned(reference) and _is_aligned(candidate)
    return _Layout(reference.dtype, candidate.dtype, aligned)


def _is_aligned(tensor_NF: Tensor) -> bool:
    """Every lane's eight elements are whole 16-byte words."""
    row, column = tensor_NF.stride()
    return column == 1 and tensor_NF.shape[1] % 8 == 0 and row % 8 == 0 and tensor_NF.data_ptr() % 16 == 0


def _launch(pairs: Sequence[Pair], layout: _Layout, tables: Tables) -> None:
    rows_of: dict[tuple[int, ...], int] = {}
    pair_table: list[int] = []
    target_table: list[int] = []
    partials = most_warps = 0
    for state, reference, candidate in pairs:
        N, F = reference.shape
        key = (reference.data_ptr(), candidate.data_ptr(), N, F, *reference.stride(), *candidate.stride())
        index = rows_of.get(key)
        if index is None:
            index = rows_of[key] = len(rows_of)
            rows = max(1, _ELEMENTS_A_WARP // (kernels.ROWS_A_TILE.value * F)) * kernels.ROWS_A_TILE.value
            pair_table += (*key, rows, partials)
            warps = -(-N // rows)
            partials += warps
            most_warps = max(most_warps, warps)
        target_table += (index, state.reals.data_ptr(), state.counts.data_ptr())
    device = pairs[0].reference_NF.device
    table = tables.place(pair_table + target_table, device)
    reals = torch.empty(kernels.PARTIAL_REALS.value * partials, dtype=torch.float64, device=device)
    counts = torch.empty(kernels.PARTIAL_COUNTS.value * partials, dtype=torch.int64, device=device)
    coarser = coarser_dtype(layout.reference, layout.candidate)
    meta: dict[str, Any] = {"REFERENCE": _TRITON[layout.reference], "CANDIDATE": _TRITON[layout.candidate]}
    with torch.cuda.device_of(table):
        kernels.measure[(most_warps, len(rows_of))](
            *(table, reals, counts, partials),
            **meta,
            COARSER=_TRITON[coarser],
            RTOL=default_tolerance(coarser).rtol,
            ALIGNED=layout.aligned,
            num_warps=1,
        )
        kernels.join[(len(pairs),)](table, table[len(pair_table) :], reals, counts, partials, **meta, num_warps=4)
