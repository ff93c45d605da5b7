"""The Triton kernel that joins the partials of `kernels.py`, for `fused.py`.

One program joins a pair's partials in row order, finds the worst element's column in the worst row, and merges all that
into the accumulator's state, in place.

Shapes: P partials, K fields.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from sweeper.metrics import elements
from sweeper.metrics.elements import larger
from sweeper.metrics.kernels import FAR, PAIR_COLUMNS, side

_TARGET = tl.constexpr(3)  # columns: pair, addresses of reals and counts
_FIRST_COUNT = tl.constexpr(2)  # state.Count.FINITE


@triton.jit
def _worst_column(pair, row, worst, REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr):
    """The first column of the row where the difference is the worst, and both values there."""
    BLOCK: tl.constexpr = 2048
    reference, candidate = side(pair, 0, REFERENCE, False), side(pair, 1, CANDIDATE, False)
    F = tl.load(pair + 3)
    nearest = tl.full((BLOCK,), FAR, tl.int64)
    for start in range(0, F, BLOCK):
        column = start + tl.arange(0, BLOCK)
        r = _value(reference, row, column, column < F)
        c = _value(candidate, row, column, column < F)
        reaches = (column < F) & (tl.abs(c - r) == worst)  # worst is finite, so both are
        nearest = tl.minimum(nearest, tl.where(reaches, column, FAR))
    column = tl.min(nearest, 0)
    return column, _value(reference, row, column, True), _value(candidate, row, column, True)


@triton.jit
def _value(side, row, column, here):
    value = tl.load(side.start + row * side.row + column * side.column, here, other=0.0)
    return elements.as_float32(value).to(tl.float64)


@triton.jit
def _joined(reals, counts, partials, number):
    """Of a pair's partials: real and count fields, [K] each, the worst difference and the first row that has it."""
    BLOCK: tl.constexpr = 512
    field_K = tl.arange(0, 8)
    field_K1 = field_K[:, None]
    none_K1 = tl.where(field_K1 == 7, float("inf"), tl.where(field_K1 == 5, -1.0, 0.0)).to(tl.float64)
    reals_KP = none_K1 + tl.zeros((8, BLOCK), tl.float64)
    counts_KP = tl.zeros((8, BLOCK), tl.int64)
    worst_P, row_P = tl.full((BLOCK,), -1.0, tl.float64), tl.full((BLOCK,), FAR, tl.int64)
    for start in range(0, number, BLOCK):
        place_P = start + tl.arange(0, BLOCK)
        here_P = place_P < number
        place_KP = field_K1 * partials + place_P[None, :]
        real_KP = tl.where(here_P[None, :], tl.load(reals + place_KP, here_P[None, :]), none_K1)
        reals_KP = _merged_reals(field_K1, reals_KP, real_KP)
        counts_KP = _merged_counts(field_K1, counts_KP, tl.load(counts + place_KP, here_P[None, :], other=0))
        max_P = tl.load(reals + 5 * partials + place_P, here_P, other=-1.0)
        row_P = tl.where(max_P > worst_P, tl.load(counts + 8 * partials + place_P, here_P, other=FAR), row_P)
        worst_P = larger(worst_P, max_P)
    worst = tl.reduce(worst_P, 0, larger)
    row = tl.min(tl.where(worst_P == worst, row_P, FAR), 0)
    extreme_K = tl.where(field_K == 7, tl.min(reals_KP, 1), tl.max(reals_KP, 1))
    reals_K = tl.where(field_K < 5, tl.sum(reals_KP, 1), extreme_K)
    return reals_K, tl.where(field_K == 7, tl.max(counts_KP, 1), tl.sum(counts_KP, 1)), worst, row


@triton.jit
def _merged_reals(field, earlier, later):
    """Five sums, two maxima, a minimum, as `state.Real` numbers them."""
    extreme = tl.where(field == 7, tl.minimum(earlier, later), tl.maximum(earlier, later))
    return tl.where(field < 5, earlier + later, extreme)


@triton.jit
def _merged_counts(field, earlier, later):
    """Seven sums and a maximum."""
    return tl.where(field == 7, tl.maximum(earlier, later), earlier + later)


@triton.jit(do_not_specialize=["partials"])
def join(table, targets, reals, counts, partials, REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr):
    """The state of one pair from its partials, merged into the accumulator's as `state.merge` does."""
    target = targets + tl.program_id(0) * _TARGET
    pair = table + tl.load(target) * PAIR_COLUMNS
    N, first = tl.load(pair + 2), tl.load(pair + 9)
    number = tl.cdiv(N, tl.load(pair + 8))
    reals_K, counts_K, worst, row = _joined(reals + first, counts + first, partials, number)

    field_K = tl.arange(0, 8)
    state_reals = tl.load(target + 1).to(tl.pointer_type(tl.float64))
    state_counts = tl.load(target + 2).to(tl.pointer_type(tl.int64))
    real_before_K, count_before_K = tl.load(state_reals + field_K), tl.load(state_counts + _FIRST_COUNT + field_K)
    rows_before, numel_before = tl.load(state_counts), tl.load(state_counts + 1)
    worst_before = tl.load(state_reals + 5)
    tl.debug_barrier()  # other warps read what one warp writes
    counts_K += tl.where(field_K == 7, tl.full((), -(2**63), tl.int64), 0)
    tl.store(state_reals + field_K, _merged_reals(field_K, real_before_K, reals_K))
    tl.store(state_counts + _FIRST_COUNT + field_K, _merged_counts(field_K, count_before_K, counts_K))
    tl.store(state_counts, rows_before + N)
    tl.store(state_counts + 1, numel_before + N * tl.load(pair + 3))
    if worst > worst_before:
        column, r, c = _worst_column(pair, row, worst, REFERENCE, CANDIDATE)
        tl.store(state_counts + 10, rows_before + row)
        tl.store(state_counts + 11, column)
        tl.store(state_reals + 8, r)
        tl.store(state_reals + 9, c)
