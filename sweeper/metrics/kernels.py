"""The Triton kernels of `fused.py`.

One warp takes some rows of one pair, four rows at a time, eight lanes a row, and leaves a *partial*: the state of its
rows. A second kernel joins a pair's partials in row order, finds the worst element's column in the worst row, and
merges all that into the accumulator's state, in place.

Shapes: N tokens, F features. Of a tile: R rows, L lanes a row, E elements a lane (one load), C = L E columns.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

ROWS_A_TILE = tl.constexpr(4)
_R, _L, _E = ROWS_A_TILE, tl.constexpr(8), tl.constexpr(8)
# Fields of a partial; each is an array over all partials of a launch.
PARTIAL_REALS = tl.constexpr(8)  # the first eight of `state.Real`
PARTIAL_COUNTS = tl.constexpr(9)  # of `state.Count` those from FINITE to MAX_ULP, then the worst row
# Columns of the tables, all int64.
PAIR_COLUMNS = tl.constexpr(10)  # 2 addresses, N, F, 2 x (row stride, column stride), rows a warp, first partial
_TARGET = tl.constexpr(3)  # pair, addresses of reals and counts
_FAR = tl.constexpr(2**31 - 1)


@triton.jit
def _larger(a, b):
    return tl.where(b > a, b, a)


@triton.jit
def _tile(row_R, start, F, step, here_R, ALIGNED: tl.constexpr):
    """[R, C] from column `start` on, 0 outside of the rows."""
    column_C = start + tl.arange(0, _L * _E)
    inside_RC = (column_C < F)[None, :] & here_R[:, None]
    if ALIGNED:
        return tl.load(row_R[:, None] + column_C[None, :], inside_RC, other=0.0)
    return tl.load(row_R[:, None] + column_C[None, :] * step, inside_RC, other=0.0)


@triton.jit
def _by_lane(tile_RC, ALIGNED: tl.constexpr):
    """[R, C] -> [R, L, E] with the elements that a lane holds: neighbours where it loads eight at once."""
    if ALIGNED:
        return tl.reshape(tile_RC, (_R, _L, _E))
    return tl.permute(tl.reshape(tile_RC, (_R, _E, _L)), (0, 2, 1))


@triton.jit
def _sum(tile_RC, ALIGNED: tl.constexpr):
    """[R, C] -> [R, L]: within each lane."""
    return tl.sum(_by_lane(tile_RC, ALIGNED), 2)


@triton.jit
def _max(tile_RC, ALIGNED: tl.constexpr):
    return tl.reduce(_by_lane(tile_RC, ALIGNED), 2, _larger)


@triton.jit
def _float32(value):
    """Exact; of bfloat16 by its bits, as comparing them in their own format may take subnormals for 0."""
    if value.dtype == tl.bfloat16:
        return (value.to(tl.int16, bitcast=True).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    return value.to(tl.float32)


@triton.jit
def _ordinal(value, COARSER: tl.constexpr):
    """`precision.ordinal` of the value rounded to COARSER; from bfloat16, times 2**16."""
    if tl.float16 == COARSER:
        bits = value.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32)
        magnitude = bits & 0x7FFF
    else:
        bits = _float32(value).to(tl.int32, bitcast=True)
        if tl.bfloat16 == COARSER and value.dtype != tl.bfloat16:
            bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000  # to the nearest, ties to even
        magnitude = bits & 0x7FFFFFFF
    sign = bits >> 31
    return (magnitude ^ sign) - sign


@triton.jit
def _ulp_distance(reference, candidate, COARSER: tl.constexpr):
    """The distance wraps around modulo 2**32, hence is right as an unsigned number."""
    reference, candidate = _ordinal(reference, COARSER), _ordinal(candidate, COARSER)
    larger, smaller = tl.maximum(reference, candidate), tl.minimum(reference, candidate)
    return larger.to(tl.uint32, bitcast=True) - smaller.to(tl.uint32, bitcast=True)


@triton.jit
def _cosine(references, candidates, differences, products):
    """`pair.cosine`; nothing overflows, as squares of float32 are small for float64."""
    ratio = products / (tl.sqrt(references) * tl.sqrt(candidates))
    ratio = tl.where(ratio > 1, 1.0, tl.where(ratio < -1, -1.0, ratio))
    ratio = tl.where((references == 0) | (candidates == 0), 0.0, ratio)
    return tl.where(differences == 0, 1.0, ratio)


@triton.jit
def _is_finite(value_f32):
    return (value_f32.to(tl.int32, bitcast=True) & 0x7FFFFFFF) < 0x7F800000


@triton.jit
def _is_inf(value_f32):
    return (value_f32.to(tl.int32, bitcast=True) & 0x7FFFFFFF) == 0x7F800000


@triton.jit
def _measure_rows(
    pair, first, stop, reals, counts, partials,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Writes the partial of the rows from `first` to `stop`. Returns whether all elements are finite on both sides.

    MASKED: what is not finite on both sides becomes 0 on both, and is counted. Without it such a partial is wrong.
    """
    reference = tl.load(pair).to(tl.pointer_type(REFERENCE))
    candidate = tl.load(pair + 1).to(tl.pointer_type(CANDIDATE))
    F = tl.load(pair + 3).to(tl.int32)
    reference_row, candidate_row = tl.load(pair + 4), tl.load(pair + 6)
    reference_step, candidate_step = tl.load(pair + 5), tl.load(pair + 7)
    row_R = tl.arange(0, _R)
    if ALIGNED:
        reference, candidate = tl.multiple_of(reference, 16), tl.multiple_of(candidate, 16)
        F = tl.multiple_of(F, 8)
        reference_row, candidate_row = tl.multiple_of(reference_row, 8), tl.multiple_of(candidate_row, 8)

    abs_sum_RL = tl.zeros((_R, _L), tl.float64)
    excess_RL = tl.zeros((_R, _L), tl.float64)
    unequal_RL = tl.zeros((_R, _L), tl.int32)
    ulp_RL = tl.zeros((_R, _L), tl.uint32)
    references_R = tl.zeros((_R,), tl.float64)
    candidates_R = tl.zeros((_R,), tl.float64)
    differences_R = tl.zeros((_R,), tl.float64)
    products_R = tl.zeros((_R,), tl.float64)
    cosine_R = tl.full((_R,), float("inf"), tl.float64)
    worst = tl.full((), -1.0, tl.float64)
    worst_row = tl.full((), _FAR, tl.int64)
    finite_RL = tl.zeros((_R, _L), tl.int32)
    mismatch_RL = tl.zeros((_R, _L), tl.int32)
    reference_nan_RL = tl.zeros((_R, _L), tl.int32)
    candidate_nan_RL = tl.zeros((_R, _L), tl.int32)
    reference_inf_RL = tl.zeros((_R, _L), tl.int32)
    candidate_inf_RL = tl.zeros((_R, _L), tl.int32)

    for tile in range(first, stop, _R):
        rows_R = tile + row_R
        reference_R = reference + rows_R * reference_row
        candidate_R = candidate + rows_R * candidate_row
        rr_RL = tl.zeros((_R, _L), tl.float64)
        cc_RL = tl.zeros((_R, _L), tl.float64)
        dd_RL = tl.zeros((_R, _L), tl.float64)
        rc_RL = tl.zeros((_R, _L), tl.float64)
        max_RL = tl.full((_R, _L), -1.0, tl.float64)
        next_r = _tile(reference_R, 0, F, reference_step, rows_R < stop, ALIGNED)
        next_c = _tile(candidate_R, 0, F, candidate_step, rows_R < stop, ALIGNED)
        for start in range(0, F, _L * _E):
            r, c = next_r, next_c
            next_r = _tile(reference_R, start + _L * _E, F, reference_step, rows_R < stop, ALIGNED)
            next_c = _tile(candidate_R, start + _L * _E, F, candidate_step, rows_R < stop, ALIGNED)
            if MASKED:
                r32, c32 = _float32(r), _float32(c)
                finite = _is_finite(r32) & _is_finite(c32)
                same = (r32 == c32) | ((r32 != r32) & (c32 != c32))
                mismatch_RL += _sum((~(finite | same)).to(tl.int32), ALIGNED)
                inside = ((start + tl.arange(0, _L * _E))[None, :] < F) & (rows_R < stop)[:, None]
                present = finite & inside
                finite_RL += _sum(present.to(tl.int32), ALIGNED)
                reference_nan_RL += _sum((r32 != r32).to(tl.int32), ALIGNED)
                candidate_nan_RL += _sum((c32 != c32).to(tl.int32), ALIGNED)
                reference_inf_RL += _sum(_is_inf(r32).to(tl.int32), ALIGNED)
                candidate_inf_RL += _sum(_is_inf(c32).to(tl.int32), ALIGNED)
                r, c = tl.where(finite, r, 0.0).to(REFERENCE), tl.where(finite, c, 0.0).to(CANDIDATE)
            ulp_RL = _larger(ulp_RL, _max(_ulp_distance(r, c, COARSER), ALIGNED))
            r32, c32 = _float32(r), _float32(c)
            unequal_RL += _sum((r32 != c32).to(tl.int32), ALIGNED)
            r64, c64 = r32.to(tl.float64), c32.to(tl.float64)
            d64 = c64 - r64
            rr_RL += _sum(r64 * r64, ALIGNED)
            cc_RL += _sum(c64 * c64, ALIGNED)
            dd_RL += _sum(d64 * d64, ALIGNED)
            rc_RL += _sum(r64 * c64, ALIGNED)
            a64 = tl.abs(d64)
            abs_sum_RL += _sum(a64, ALIGNED)
            excess_RL = _larger(excess_RL, _max(a64 - tl.abs(r64) * RTOL, ALIGNED))
            if MASKED:
                a64 = tl.where(present, a64, -1.0)
            max_RL = _larger(max_RL, _max(a64, ALIGNED))
        rr_R, cc_R = tl.sum(rr_RL, 1), tl.sum(cc_RL, 1)
        dd_R, rc_R = tl.sum(dd_RL, 1), tl.sum(rc_RL, 1)
        max_R = tl.where(rows_R < stop, tl.reduce(max_RL, 1, _larger), -1.0)
        references_R += rr_R
        candidates_R += cc_R
        differences_R += dd_R
        products_R += rc_R
        token_cosine_R = tl.where(max_R < 0, float("inf"), _cosine(rr_R, cc_R, dd_R, rc_R))
        cosine_R = tl.where(token_cosine_R < cosine_R, token_cosine_R, cosine_R)
        tile_worst = tl.reduce(max_R, 0, _larger)
        tile_row = tl.min(tl.where(max_R == tile_worst, rows_R.to(tl.int64), _FAR), 0)
        worst_row = tl.where(tile_worst > worst, tile_row, worst_row)
        worst = _larger(worst, tile_worst)

    reference_squares, candidate_squares = tl.sum(references_R, 0), tl.sum(candidates_R, 0)
    tl.store(reals, tl.sum(tl.sum(abs_sum_RL, 1), 0))
    tl.store(reals + partials, reference_squares)
    tl.store(reals + 2 * partials, candidate_squares)
    tl.store(reals + 3 * partials, tl.sum(differences_R, 0))
    tl.store(reals + 4 * partials, tl.sum(products_R, 0))
    tl.store(reals + 5 * partials, worst)
    tl.store(reals + 6 * partials, tl.reduce(tl.reduce(excess_RL, 1, _larger), 0, _larger))
    tl.store(reals + 7 * partials, tl.min(cosine_R, 0))
    if MASKED:
        tl.store(counts, tl.sum(tl.sum(finite_RL, 1), 0).to(tl.int64))
    else:
        tl.store(counts, (stop - first) * F.to(tl.int64))
    tl.store(counts + partials, tl.sum(tl.sum(unequal_RL, 1), 0).to(tl.int64))
    tl.store(counts + 2 * partials, tl.sum(tl.sum(mismatch_RL, 1), 0).to(tl.int64))
    tl.store(counts + 3 * partials, tl.sum(tl.sum(reference_nan_RL, 1), 0).to(tl.int64))
    tl.store(counts + 4 * partials, tl.sum(tl.sum(candidate_nan_RL, 1), 0).to(tl.int64))
    tl.store(counts + 5 * partials, tl.sum(tl.sum(reference_inf_RL, 1), 0).to(tl.int64))
    tl.store(counts + 6 * partials, tl.sum(tl.sum(candidate_inf_RL, 1), 0).to(tl.int64))
    ulp = tl.reduce(tl.reduce(ulp_RL, 1, _larger), 0, _larger).to(tl.int64)
    tl.store(counts + 7 * partials, ulp >> 16 if tl.bfloat16 == COARSER else ulp)
    tl.store(counts + 8 * partials, worst_row)
    return (reference_squares + candidate_squares) < float("inf")


@triton.jit(do_not_specialize=["partials"])
def measure(
    table, reals, counts, partials,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr,
):  # fmt: skip
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


@triton.jit(do_not_specialize=["partials"])
def join(
    table, targets, reals, counts, partials, REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, BLOCK: tl.constexpr = 512
):
    """The state of one pair from its partials, merged into the accumulator's as `state.merge` does."""
    target = targets + tl.program_id(0) * _TARGET
    pair = table + tl.load(target) * PAIR_COLUMNS
    N, F, rows = tl.load(pair + 2), tl.load(pair + 3), tl.load(pair + 8)
    first, number = tl.load(pair + 9), tl.cdiv(N, rows)
    state_reals = tl.load(target + 1).to(tl.pointer_type(tl.float64))
    state_counts = tl.load(target + 2).to(tl.pointer_type(tl.int64))
    reals += first
    counts += first
    place = tl.arange(0, BLOCK)

    rows_before = tl.load(state_counts)
    tl.store(state_counts, rows_before + N)
    tl.store(state_counts + 1, tl.load(state_counts + 1) + N * F)
    for field in tl.static_range(5):  # sums
        total = tl.zeros((BLOCK,), tl.float64)
        for start in range(0, number, BLOCK):
            total += tl.load(reals + field * partials + start + place, start + place < number, other=0.0)
        tl.store(state_reals + field, tl.load(state_reals + field) + tl.sum(total, 0))
    for field in tl.static_range(7):  # counts
        count = tl.zeros((BLOCK,), tl.int64)
        for start in range(0, number, BLOCK):
            count += tl.load(counts + field * partials + start + place, start + place < number, other=0)
        tl.store(state_counts + 2 + field, tl.load(state_counts + 2 + field) + tl.sum(count, 0))

    max_abs = tl.full((BLOCK,), -1.0, tl.float64)
    excess = tl.zeros((BLOCK,), tl.float64)
    cosine = tl.full((BLOCK,), float("inf"), tl.float64)
    ulp = tl.zeros((BLOCK,), tl.int64)
    for start in range(0, number, BLOCK):
        here = start + place < number
        max_abs = _larger(max_abs, tl.load(reals + 5 * partials + start + place, here, other=-1.0))
        excess = _larger(excess, tl.load(reals + 6 * partials + start + place, here, other=0.0))
        later = tl.load(reals + 7 * partials + start + place, here, other=float("inf"))
        cosine = tl.where(later < cosine, later, cosine)
        ulp = _larger(ulp, tl.load(counts + 7 * partials + start + place, here, other=0))
    worst = tl.reduce(max_abs, 0, _larger)
    before = tl.load(state_reals + 5)
    tl.store(state_reals + 5, _larger(before, worst))
    tl.store(state_reals + 6, _larger(tl.load(state_reals + 6), tl.reduce(excess, 0, _larger)))
    least, least_before = tl.min(cosine, 0), tl.load(state_reals + 7)
    tl.store(state_reals + 7, tl.where(least < least_before, least, least_before))
    biased = tl.reduce(ulp, 0, _larger) + tl.full((), -(2**63), tl.int64)
    tl.store(state_counts + 9, _larger(tl.load(state_counts + 9), biased))

    if worst > before:
        nearest = tl.full((BLOCK,), _FAR, tl.int64)
        for start in range(0, number, BLOCK):
            here = start + place < number
            reaches = tl.load(reals + 5 * partials + start + place, here, other=-1.0) == worst
            row = tl.load(counts + 8 * partials + start + place, here, other=_FAR)
            nearest = tl.minimum(nearest, tl.where(reaches & here, row, _FAR))
        row = tl.min(nearest, 0)
        reference = tl.load(pair).to(tl.pointer_type(REFERENCE)) + row * tl.load(pair + 4)
        candidate = tl.load(pair + 1).to(tl.pointer_type(CANDIDATE)) + row * tl.load(pair + 6)
        reference_column, candidate_column = tl.load(pair + 5), tl.load(pair + 7)
        column = tl.full((BLOCK,), _FAR, tl.int64)
        for start in range(0, F, BLOCK):
            here = start + place < F
            r = _float32(tl.load(reference + (start + place) * reference_column, here, other=0.0)).to(tl.float64)
            c = _float32(tl.load(candidate + (start + place) * candidate_column, here, other=0.0)).to(tl.float64)
            reaches = here & (tl.abs(c - r) == worst)  # worst is finite, so both are
            column = tl.minimum(column, tl.where(reaches, start + place, _FAR))
        feature = tl.min(column, 0)
        tl.store(state_counts + 10, rows_before + row)
        tl.store(state_counts + 11, feature)
        tl.store(state_reals + 8, _float32(tl.load(reference + feature * reference_column)).to(tl.float64))
        tl.store(state_reals + 9, _float32(tl.load(candidate + feature * candidate_column)).to(tl.float64))
