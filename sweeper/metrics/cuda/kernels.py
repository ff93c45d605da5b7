"""The Triton kernel that measures pairs, for `fused.py`.

One warp takes some rows of one pair, four rows at a time, eight lanes a row (or one row, where that is long enough for
all lanes), and leaves a *partial*: the state of its rows. `joining.py` adds the partials to states.

Rows and their tiles are one loop, so that the loads run ahead of their use all the way (Triton makes asynchronous
copies to shared memory of them), from one row to the next too.

Shapes: N tokens, F features. Of a tile: R rows, L lanes a row, E elements a lane.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: SIM300 (capitals are Triton's parameters)
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sweeper.metrics.cuda import accumulating, elements
from sweeper.metrics.cuda.elements import FAR, LANES, Side, largest, total

# Fields of a partial, 8 bytes each; each is an array over all partials of a launch. First `state.Real`, then of
# `state.Count` those from FINITE on, in their order.
PARTIAL_REALS = tl.constexpr(10)
PARTIAL_FIELDS = tl.constexpr(20)
# Columns of the table, all int64: 2 addresses, N, F, 2 x (row stride, column stride), rows a warp, first partial.
PAIR_COLUMNS = tl.constexpr(10)
# Turns of the loop that loads run ahead, and tiles a turn: on an H200 with 16384 x 3072 in bfloat16, 3 turns ran at
# the same rate, and one tile a turn slower, as what a turn costs beside its tiles is then paid twice as often.
_STAGES = tl.constexpr(4)
_TILES = tl.constexpr(2)


class _Pair(NamedTuple):
    """Where the tensors are, and F as int32."""

    reference: Any
    candidate: Any
    F: Any


class _Ahead(NamedTuple):
    """The next tile to be loaded: its rows, where they start on both sides, and its first column."""

    rows: Any
    reference: Any
    candidate: Any
    column: Any


@triton.jit
def _pair(row, REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, ALIGNED: tl.constexpr):
    """A row of the table."""
    F = tl.load(row + 3).to(tl.int32)
    if ALIGNED:
        F = tl.multiple_of(F, 8)
    return _Pair(_side(row, 0, REFERENCE, ALIGNED), _side(row, 1, CANDIDATE, ALIGNED), F)


@triton.jit
def _side(row, AT: tl.constexpr, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The reference is at 0, the candidate at 1."""
    start, stride = tl.load(row + AT).to(tl.pointer_type(DTYPE)), tl.load(row + 4 + 2 * AT)
    if ALIGNED:
        start, stride = tl.multiple_of(start, 16), tl.multiple_of(stride, 8)
    return Side(start, stride, tl.load(row + 5 + 2 * AT))


@triton.jit
def _start(pair, rows_R):
    """The first tile of these rows."""
    reference_R = pair.reference.start + rows_R.to(tl.int64) * pair.reference.row
    candidate_R = pair.candidate.start + rows_R.to(tl.int64) * pair.candidate.row
    return _Ahead(rows_R, reference_R, candidate_R, tl.full((), 0, tl.int32))


@triton.jit
def _after(ahead, width, pair, R: tl.constexpr):
    """The tile so many columns behind this one, or the first of the next R rows."""
    column = ahead.column + width
    rows = tl.where(column < pair.F, 0, R)
    return _Ahead(
        ahead.rows + rows,
        ahead.reference + rows * pair.reference.row,
        ahead.candidate + rows * pair.candidate.row,
        tl.where(column < pair.F, column, 0),
    )


@triton.jit
def _load(
    pair, ahead, first, stop,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, ALIGNED: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """Both sides from a column on, float32 [R, L, E], and 0 outside; both have their elements in the same lanes."""
    PACKED: tl.constexpr = ALIGNED and REFERENCE != tl.float32 and CANDIDATE != tl.float32
    C: tl.constexpr = LANES // R * E
    here_R = ahead.rows < stop
    r = elements.load(ahead.reference, pair.reference.column, first, pair.F, here_R, PACKED, ALIGNED, C)
    c = elements.load(ahead.candidate, pair.candidate.column, first, pair.F, here_R, PACKED, ALIGNED, C)
    return elements.unpack(r, REFERENCE, ALIGNED, R, E), elements.unpack(c, CANDIDATE, ALIGNED, R, E)


@triton.jit
def _measure_rows(
    pair, first, stop, reals, partials,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr, R: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Writes the partial of the rows from `first` to `stop` but for the worst element. Returns what is known of that,
    and whether all elements are finite on both sides.

    MASKED: what is not finite on both sides becomes 0 on both, and is counted. Without it such a partial is wrong.
    """
    # A lane's load is 16 bytes at most.
    E: tl.constexpr = 4 if REFERENCE == tl.float32 and CANDIDATE == tl.float32 else 8
    C: tl.constexpr = LANES // R * E
    rows, sums, whole, nonfinite = accumulating.nothing(COARSER, R)
    none, finite_before_RL = sums, nonfinite.finite
    rows_R, column = first + tl.arange(0, R), 0
    ahead = _start(pair, rows_R)
    turns = tl.cdiv(pair.F, _TILES * C) * tl.cdiv(stop - first, R)
    for _ in tl.range(0, turns, num_stages=1 if MASKED else _STAGES):
        for tile in tl.static_range(_TILES):
            r32, c32 = _load(pair, ahead, ahead.column + tile * C, stop, REFERENCE, CANDIDATE, ALIGNED, R, E)
            at = column + tile * C
            if MASKED:
                inside = accumulating.inside(at, pair.F, rows_R < stop, ALIGNED, R, E)
                nonfinite, r32, c32 = accumulating.mask(nonfinite, r32, c32, inside)
            sums, whole = accumulating.add(sums, whole, r32, c32, at, REFERENCE, CANDIDATE, COARSER, RTOL)
        ahead = _after(ahead, _TILES * C, pair, R)
        column += _TILES * C
        if column >= pair.F:
            here_R = rows_R < stop
            if MASKED:
                here_R = tl.sum(nonfinite.finite - finite_before_RL, 1) > 0
                finite_before_RL = nonfinite.finite
            rows = accumulating.add_rows(rows, sums, rows_R, here_R)
            sums, rows_R, column = none, rows_R + R, 0
    finite = total(nonfinite.finite) if MASKED else (stop - first) * pair.F
    return accumulating.worst_of(rows), _store(reals, partials, rows, whole, nonfinite, finite)


@triton.jit
def _store(reals, partials, rows, whole, nonfinite, finite):
    """All of a partial but its worst element. Returns whether the sums of squares are finite."""
    counts = _counts(reals, partials)
    reference_squares, candidate_squares = tl.sum(rows.references, 0), tl.sum(rows.candidates, 0)
    tl.store(reals, total(whole.abs_sum))
    tl.store(reals + partials, reference_squares)
    tl.store(reals + 2 * partials, candidate_squares)
    tl.store(reals + 3 * partials, tl.sum(rows.differences, 0))
    tl.store(reals + 4 * partials, tl.sum(rows.products, 0))
    tl.store(reals + 6 * partials, largest(whole.excess))
    tl.store(reals + 7 * partials, tl.min(rows.cosine, 0))
    tl.store(counts, finite)
    tl.store(counts + partials, total(whole.unequal.to(tl.int32)))
    tl.store(counts + 2 * partials, total(nonfinite.mismatch))
    tl.store(counts + 3 * partials, total(nonfinite.reference_nan))
    tl.store(counts + 4 * partials, total(nonfinite.candidate_nan))
    tl.store(counts + 5 * partials, total(nonfinite.reference_inf))
    tl.store(counts + 6 * partials, total(nonfinite.candidate_inf))
    tl.store(counts + 7 * partials, largest(whole.ulp).to(tl.uint32, bitcast=True).to(tl.int64))
    return (reference_squares + candidate_squares) < float("inf")


@triton.jit
def _counts(reals, partials):
    """Where a partial's counts are."""
    return (reals + PARTIAL_REALS * partials).to(tl.pointer_type(tl.int64))


@triton.jit
def _store_worst(worst, pair, reals, partials):
    """The worst element: the first column from the tile on that has the difference, and both values there.

    It is in that tile, unless all differences of the row are 0 and the row begins with elements that are not finite.
    """
    W: tl.constexpr = 64
    reference, candidate, F = pair.reference, pair.candidate, pair.F
    column, first = tl.full((), FAR, tl.int32), worst.tile
    while (column == FAR) & (first < F):
        column_W = first + tl.arange(0, W)
        r_W = _value(reference, worst.row, column_W, column_W < F)
        c_W = _value(candidate, worst.row, column_W, column_W < F)
        has_it_W = (column_W < F) & (tl.abs(c_W - r_W) == worst.difference)
        column = tl.min(tl.where(has_it_W, column_W, FAR), 0)
        first += W
    counts = _counts(reals, partials)
    tl.store(reals + 5 * partials, worst.difference)
    tl.store(reals + 8 * partials, _value(reference, worst.row, column, column < F))
    tl.store(reals + 9 * partials, _value(candidate, worst.row, column, column < F))
    tl.store(counts + 8 * partials, worst.row.to(tl.int64))
    tl.store(counts + 9 * partials, column.to(tl.int64))


@triton.jit
def _value(side, row, column, here):
    place = side.start + row.to(tl.int64) * side.row + column * side.column
    return elements.as_float32(tl.load(place, here, other=0.0)).to(tl.float64)


@triton.jit(do_not_specialize=["partials"])
def measure(
    table, reals, partials,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
    ALIGNED: tl.constexpr, R: tl.constexpr,
):  # fmt: skip
    """The partials of all pairs in the table; programs are warps x pairs."""
    row = table + tl.program_id(1) * PAIR_COLUMNS
    N, rows = tl.load(row + 2), tl.load(row + 8)
    first = tl.program_id(0) * rows
    if first < N:
        start, stop = first.to(tl.int32), tl.minimum(first + rows, N).to(tl.int32)
        pair = _pair(row, REFERENCE, CANDIDATE, ALIGNED)
        reals += tl.load(row + 9) + tl.program_id(0)
        worst, finite = _measure_rows(
            pair, start, stop, reals, partials, REFERENCE, CANDIDATE, COARSER, RTOL, ALIGNED, R, False
        )
        # Squares of NaN or Inf make the sums so: rare, hence found out for nothing, and then measured again with care.
        if not finite:
            worst, finite = _measure_rows(
                pair, start, stop, reals, partials, REFERENCE, CANDIDATE, COARSER, RTOL, ALIGNED, R, True
            )
        _store_worst(worst, pair, reals, partials)
