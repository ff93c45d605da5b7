"""What the Triton kernel of `kernels.py` accumulates of its rows: tile by tile, then the rows of a tile at a time.

Shapes: R rows, L lanes a row, E elements a lane, C = L E columns; R L are a warp's lanes.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: RET505, SIM300 (Triton compiles what stands behind a `return` in an `if`; capitals are its parameters)
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sweeper.metrics.cuda import elements
from sweeper.metrics.cuda.elements import FAR, LANES, larger, largest


class Sums(NamedTuple):
    """A lane's part of the sums of one row, in float64."""

    references: Any
    candidates: Any
    differences: Any
    products: Any
    worst: Any  # the largest difference: its sign costs less to keep than to drop
    tile: Any  # the first column of the first tile that has it, int32


class Rows(NamedTuple):
    """What the rows so far gave: float64 sums of every R-th row [R], and what each lane has seen [R, L]."""

    references: Any
    candidates: Any
    differences: Any
    products: Any
    cosine: Any  # the least, +inf where there is none
    worst: Any  # the largest difference, -1 where there is none
    row: Any  # the first that has it, and the tile there
    tile: Any


class Whole(NamedTuple):
    """A lane's part of what all rows gave."""

    abs_sum: Any
    excess: Any
    unequal: Any
    ulp: Any


class Nonfinite(NamedTuple):
    """Counts of a lane; all 0 where nobody looks."""

    finite: Any
    mismatch: Any
    reference_nan: Any
    candidate_nan: Any
    reference_inf: Any
    candidate_inf: Any


class Worst(NamedTuple):
    """The largest difference, the first row that has it, and a column of it before which no element has it."""

    difference: Any
    row: Any
    tile: Any


@triton.jit
def nothing(COARSER: tl.constexpr, R: tl.constexpr):
    """Starts with what no rows give."""
    L: tl.constexpr = LANES // R
    real_R, real_RL, count_RL = tl.zeros((R,), tl.float64), tl.zeros((R, L), tl.float64), tl.zeros((R, L), tl.int32)
    ulp_RL = tl.zeros((R, L), tl.uint32 if COARSER == tl.float32 else tl.float32)
    far_RL = count_RL + FAR
    rows = Rows(real_R, real_R, real_R, real_R, real_R + float("inf"), real_RL - 1.0, far_RL, far_RL)
    sums = Sums(real_RL, real_RL, real_RL, real_RL, real_RL, count_RL)
    whole = Whole(real_RL, real_RL, tl.zeros((R, L), tl.float32), ulp_RL)
    return rows, sums, whole, Nonfinite(count_RL, count_RL, count_RL, count_RL, count_RL, count_RL)


@triton.jit
def add(
    sums, whole, r32, c32, first,
    REFERENCE: tl.constexpr, CANDIDATE: tl.constexpr, COARSER: tl.constexpr, RTOL: tl.constexpr,
):  # fmt: skip
    """Adds a tile of finite elements, [R, L, E]."""
    ulp = elements.ulp_distance(r32, c32, REFERENCE, CANDIDATE, COARSER)
    r, c = r32.to(tl.float64), c32.to(tl.float64)
    d = c - r
    a = tl.abs(d)
    worst = tl.reduce(d, 2, elements.larger_magnitude)
    worse = tl.abs(worst) > tl.abs(sums.worst)
    sums = Sums(
        sums.references + tl.sum(r * r, 2),
        sums.candidates + tl.sum(c * c, 2),
        sums.differences + tl.sum(d * d, 2),
        sums.products + tl.sum(r * c, 2),
        tl.where(worse, worst, sums.worst),
        tl.where(worse, first, sums.tile),
    )
    whole = Whole(
        whole.abs_sum + tl.sum(a, 2),
        larger(whole.excess, tl.reduce(a - tl.abs(r) * RTOL, 2, larger)),
        whole.unequal + tl.sum((r32 != c32).to(tl.float32), 2),
        tl.maximum(whole.ulp, tl.max(ulp, 2)),
    )
    return sums, whole


@triton.jit
def mask(nonfinite, r32, c32, inside):
    """Counts what is not finite; where it is so on either side, both become 0."""
    finite = elements.is_finite(r32) & elements.is_finite(c32)
    same = (r32 == c32) | ((r32 != r32) & (c32 != c32))
    nonfinite = Nonfinite(
        nonfinite.finite + tl.sum((finite & inside).to(tl.int32), 2),
        nonfinite.mismatch + tl.sum((~(finite | same)).to(tl.int32), 2),
        nonfinite.reference_nan + tl.sum((r32 != r32).to(tl.int32), 2),
        nonfinite.candidate_nan + tl.sum((c32 != c32).to(tl.int32), 2),
        nonfinite.reference_inf + tl.sum(elements.is_inf(r32).to(tl.int32), 2),
        nonfinite.candidate_inf + tl.sum(elements.is_inf(c32).to(tl.int32), 2),
    )
    return nonfinite, tl.where(finite, r32, 0.0), tl.where(finite, c32, 0.0)


@triton.jit
def inside(first, F, here_R, ALIGNED: tl.constexpr, R: tl.constexpr, E: tl.constexpr):
    """[R, L, E]: which elements of a tile exist."""
    L: tl.constexpr = LANES // R
    inside_RC = (first + tl.arange(0, L * E) < F)[None, :] & here_R[:, None]
    if ALIGNED:
        return tl.reshape(inside_RC, (R, L, E))
    else:
        return tl.permute(tl.reshape(inside_RC, (R, E, L)), (0, 2, 1))


@triton.jit
def add_rows(rows, sums, rows_R, here_R):
    """Adds the rows of a tile; `here_R` are those with a finite element."""
    rr_R, cc_R = tl.sum(sums.references, 1), tl.sum(sums.candidates, 1)
    dd_R, rc_R = tl.sum(sums.differences, 1), tl.sum(sums.products, 1)
    cosine_R = tl.where(here_R, elements.cosine(rr_R, cc_R, dd_R, rc_R), float("inf"))
    worst_RL = tl.where(here_R[:, None], tl.abs(sums.worst), -1.0)
    worse_RL = worst_RL > rows.worst
    return Rows(
        rows.references + rr_R,
        rows.candidates + cc_R,
        rows.differences + dd_R,
        rows.products + rc_R,
        tl.where(cosine_R < rows.cosine, cosine_R, rows.cosine),
        tl.where(worse_RL, worst_RL, rows.worst),
        tl.where(worse_RL, rows_R[:, None], rows.row),
        tl.where(worse_RL, sums.tile, rows.tile),
    )


@triton.jit
def worst_of(rows):
    """Finds the worst of what the lanes have seen, and where it is."""
    worst = largest(rows.worst)
    row = tl.min(tl.min(tl.where(rows.worst == worst, rows.row, FAR), 1), 0)
    tile = tl.min(tl.min(tl.where((rows.worst == worst) & (rows.row == row), rows.tile, FAR), 1), 0)
    return Worst(worst, row, tile)
