"""The Triton kernel that measures pairs, for `fused.py`.

One warp takes some rows of one pair, four rows at a time, eight lanes a row, and leaves a *partial*: the state of its
rows. `joining.py` makes one state of a pair's partials.

Shapes: N tokens, F features. Of a tile: R rows, L lanes a row, E elements a lane.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: RET505, SIM300 (Triton compiles what stands behind a `return` in an `if`; capitals are its parameters)
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sweeper.metrics import elements
from sweeper.metrics.elements import L, R, Side, larger, largest, total

ROWS_A_TILE = elements.ROWS_A_TILE
# Fields of a partial; each is an array over all partials of a launch.
PARTIAL_REALS = tl.constexpr(8)  # the first eight of `state.Real`
PARTIAL_COUNTS = tl.constexpr(9)  # of `state.Count` those from FINITE to MAX_ULP, then the worst row
# Columns of the tables, all int64.
PAIR_COLUMNS = tl.constexpr(10)  # 2 addresses, N, F, 2 x (row stride, column stride), rows a warp, first partial
FAR = tl.constexpr(2**31 - 1)


class _Sums(NamedTuple):
    """Of one row, a lane's part: float64."""

    references: Any
    candidates: Any
    differences: Any
    products: Any
    max_abs: Any  # the difference itself: its sign costs less to keep than to drop


class _Rows(NamedTuple):
    """Of the rows so far: sums of every fourth row, float64 [R], and scalars."""

    references: Any
    candidates: Any
    differences: Any
    products: Any
    cosine: Any  # the least, +inf where there is none
    worst: Any  # the largest difference, -1 where there is none
    worst_row: Any  # the first that has it


class _Whole(NamedTuple):
    """Of all rows, a lane's part."""

    abs_sum: Any
    excess: Any
    unequal: Any
    ulp: Any


class _Nonfinite(NamedTuple):
    """Counts of a lane; all 0 where nobody looks."""

    finite: Any
    mismatch: Any
    reference_nan: Any
    candidate_nan: Any
    reference_inf: Any
    candidate_inf: Any


@triton.jit
def side(pair, AT: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The reference is at 0, the candidate at 1."""
    start, row = tl.load(pair + AT).to(tl.pointer_type(DTYPE)), tl.load(pair + 4 + 2 * AT)
    if ALIGNED:
        start, row = tl.multiple_of(start, 16), tl.multiple_of(row, 8)
    return Side(start, row, tl.load(pair + 5 + 2 * AT))


@triton.jit
def _add(
    sums, whole, r32, c32,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
):  # fmt: skip
    """Adds a tile of finite elements, [R, L, E]."""
    ulp = elements.ulp_distance(r32, c32, REFERENCE, CANDIDATE, COARSER)
    r, c = r32.to(tl.float64), c32.to(tl.float64)
    d = c - r
    a = tl.abs(d)
    largest_d = tl.reduce(d, 2, elements.larger_magnitude)
    sums = _Sums(
        sums.references + tl.sum(r * r, 2),
        sums.candidates + tl.sum(c * c, 2),
        sums.differences + tl.sum(d * d, 2),
        sums.products + tl.sum(r * c, 2),
        elements.larger_magnitude(sums.max_abs, largest_d),
    )
    whole = _Whole(
        whole.abs_sum + tl.sum(a, 2),
        larger(whole.excess, tl.reduce(a - tl.abs(r) * RTOL, 2, larger)),
        whole.unequal + tl.sum((r32 != c32).to(tl.float32), 2),
        tl.maximum(whole.ulp, tl.max(ulp, 2)),
    )
    return sums, whole


@triton.jit
def _mask(nonfinite, r32, c32, inside):
    """Counts what is not finite; where it is so on either side, both become 0."""
    finite = elements.is_finite(r32) & elements.is_finite(c32)
    same = (r32 == c32) | ((r32 != r32) & (c32 != c32))
    nonfinite = _Nonfinite(
        nonfinite.finite + tl.sum((finite & inside).to(tl.int32), 2),
        nonfinite.mismatch + tl.sum((~(finite | same)).to(tl.int32), 2),
        nonfinite.reference_nan + tl.sum((r32 != r32).to(tl.int32), 2),
        nonfinite.candidate_nan + tl.sum((c32 != c32).to(tl.int32), 2),
        nonfinite.reference_inf + tl.sum(elements.is_inf(r32).to(tl.int32), 2),
        nonfinite.candidate_inf + tl.sum(elements.is_inf(c32).to(tl.int32), 2),
    )
    return nonfinite, tl.where(finite, r32, 0.0), tl.where(finite, c32, 0.0)


@triton.jit
def _inside(first, F, here_R, ALIGNED: tl.constexpr, E: tl.constexpr):
    """[R, L, E]: which elements of a tile exist."""
    inside_RC = (first + tl.arange(0, L * E) < F)[None, :] & here_R[:, None]
    if ALIGNED:
        return tl.reshape(inside_RC, (R, L, E))
    else:
        return tl.permute(tl.reshape(inside_RC, (R, E, L)), (0, 2, 1))


@triton.jit
def _measure_four_rows(
    reference, candidate, rows_R, here_R, F, whole, nonfinite,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """The sums of the rows, and what all rows have so far. Loads of the next tile start before this one is used."""
    # A lane's load is 16 bytes at most; both sides have their elements in the same lanes.
    E: tl.constexpr = 4 if REFERENCE == tl.float32 and CANDIDATE == tl.float32 else 8
    PACKED: tl.constexpr = ALIGNED and REFERENCE != tl.float32 and CANDIDATE != tl.float32
    zero_RL = tl.zeros((R, L), tl.float64)
    sums = _Sums(zero_RL, zero_RL, zero_RL, zero_RL, zero_RL)
    next_r = elements.load(reference, rows_R, 0, F, here_R, PACKED, ALIGNED, E)
    next_c = elements.load(candidate, rows_R, 0, F, here_R, PACKED, ALIGNED, E)
    for first in range(0, F, L * E):
        r32 = elements.unpack(next_r, REFERENCE, ALIGNED, E)
        c32 = elements.unpack(next_c, CANDIDATE, ALIGNED, E)
        next_r = elements.load(reference, rows_R, first + L * E, F, here_R, PACKED, ALIGNED, E)
        next_c = elements.load(candidate, rows_R, first + L * E, F, here_R, PACKED, ALIGNED, E)
        if MASKED:
            nonfinite, r32, c32 = _mask(nonfinite, r32, c32, _inside(first, F, here_R, ALIGNED, E))
        sums, whole = _add(sums, whole, r32, c32, REFERENCE, CANDIDATE, COARSER, RTOL)
    return sums, whole, nonfinite


@triton.jit
def _add_rows(rows, sums, rows_R, here_R):
    """Adds four rows; `here_R` are those with a finite element."""
    rr_R, cc_R = tl.sum(sums.references, 1), tl.sum(sums.candidates, 1)
    dd_R, rc_R = tl.sum(sums.differences, 1), tl.sum(sums.products, 1)
    cosine_R = tl.where(here_R, elements.cosine(rr_R, cc_R, dd_R, rc_R), float("inf"))
    max_R = tl.where(here_R, tl.reduce(tl.abs(sums.max_abs), 1, larger), -1.0)
    most = tl.reduce(max_R, 0, larger)
    row = tl.min(tl.where(max_R == most, rows_R.to(tl.int64), FAR), 0)
    return _Rows(
        rows.references + rr_R,
        rows.candidates + cc_R,
        rows.differences + dd_R,
        rows.products + rc_R,
        tl.where(cosine_R < rows.cosine, cosine_R, rows.cosine),
        larger(rows.worst, most),
        tl.where(most > rows.worst, row, rows.worst_row),
    )


@triton.jit
def _measure_rows(
    pair, first, stop, reals, counts, partials,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Writes the partial of the rows from `first` to `stop`. Returns whether all elements are finite on both sides.

    MASKED: what is not finite on both sides becomes 0 on both, and is counted. Without it such a partial is wrong.
    """
    reference, candidate = side(pair, 0, REFERENCE, ALIGNED), side(pair, 1, CANDIDATE, ALIGNED)
    F = tl.load(pair + 3).to(tl.int32)
    if ALIGNED:
        F = tl.multiple_of(F, 8)
    real_R, real_RL, count_RL = tl.zeros((R,), tl.float64), tl.zeros((R, L), tl.float64), tl.zeros((R, L), tl.int32)
    ulp_RL = tl.zeros((R, L), tl.uint32 if COARSER == tl.float32 else tl.float32)
    whole = _Whole(real_RL, real_RL, tl.zeros((R, L), tl.float32), ulp_RL)
    nonfinite = _Nonfinite(count_RL, count_RL, count_RL, count_RL, count_RL, count_RL)
    worst, worst_row = tl.full((), -1.0, tl.float64), tl.full((), FAR, tl.int64)
    rows = _Rows(real_R, real_R, real_R, real_R, real_R + float("inf"), worst, worst_row)
    for row in range(first, stop, R):
        rows_R = row + tl.arange(0, R)
        here_R = rows_R < stop
        finite_before_RL = nonfinite.finite
        sums, whole, nonfinite = _measure_four_rows(
            reference, candidate, rows_R, here_R, F, whole, nonfinite,
            REFERENCE, CANDIDATE, COARSER, RTOL, ALIGNED, MASKED,
        )  # fmt: skip
        if MASKED:
            here_R = tl.sum(nonfinite.finite - finite_before_RL, 1) > 0
        rows = _add_rows(rows, sums, rows_R, here_R)
    if MASKED:
        tl.store(counts, total(nonfinite.finite))
    else:
        tl.store(counts, (stop - first) * F.to(tl.int64))
    return _store(reals, counts, partials, rows, whole, nonfinite)


@triton.jit
def _store(reals, counts, partials, rows, whole, nonfinite):
    """All of a partial but its first count. Returns whether the sums of squares are finite."""
    reference_squares, candidate_squares = tl.sum(rows.references, 0), tl.sum(rows.candidates, 0)
    tl.store(reals, total(whole.abs_sum))
    tl.store(reals + partials, reference_squares)
    tl.store(reals + 2 * partials, candidate_squares)
    tl.store(reals + 3 * partials, tl.sum(rows.differences, 0))
    tl.store(reals + 4 * partials, tl.sum(rows.products, 0))
    tl.store(reals + 5 * partials, rows.worst)
    tl.store(reals + 6 * partials, largest(whole.excess))
    tl.store(reals + 7 * partials, tl.min(rows.cosine, 0))
    tl.store(counts + partials, total(whole.unequal.to(tl.int32)))
    tl.store(counts + 2 * partials, total(nonfinite.mismatch))
    tl.store(counts + 3 * partials, total(nonfinite.reference_nan))
    tl.store(counts + 4 * partials, total(nonfinite.candidate_nan))
    tl.store(counts + 5 * partials, total(nonfinite.reference_inf))
    tl.store(counts + 6 * partials, total(nonfinite.candidate_inf))
    tl.store(counts + 7 * partials, largest(whole.ulp).to(tl.uint32, bitcast=True).to(tl.int64))
    tl.store(counts + 8 * partials, rows.worst_row)
    return (reference_squares + candidate_squares) < float("inf")


@triton.jit(do_not_specialize=["partials"])
def measure(
    table, reals, counts, partials,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
    """The partials of all pairs in the table; programs are warps x pairs."""
    pair = table + tl.program_id(1) * PAIR_COLUMNS
    N, rows = tl.load(pair + 2), tl.load(pair + 8)
    first = tl.program_id(0) * rows
    if first < N:
        stop = tl.minimum(first + rows, N)
        partial = tl.load(pair + 9) + tl.program_id(0)
        finite = _measure_rows(
            pair, first, stop, reals + partial, counts + partial, partials,
            REFERENCE, CANDIDATE, COARSER, RTOL, ALIGNED, False,
        )  # fmt: skip
        # Squares of NaN or Inf make the sums so: rare, hence found out for nothing, and then measured again with care.
        if not finite:
            _measure_rows(
                pair, first, stop, reals + partial, counts + partial, partials,
                REFERENCE, CANDIDATE, COARSER, RTOL, ALIGNED, True,
            )  # fmt: skip
