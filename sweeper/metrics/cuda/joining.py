"""The Triton kernel that adds the partials of `kernels.py` to states, for `fused.py`.

It reads addresses, partials and states, but no tensor of a pair: pairs of all shapes and dtypes share a launch.

Shapes: P partials, K fields.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from sweeper.metrics.cuda.elements import FAR, larger
from sweeper.metrics.cuda.kernels import PARTIAL_REALS

# Columns of the table, all int64: addresses of the state's reals and counts, and of the first partial; how far apart
# the partials' fields are, number of partials, N, F.
TARGET_COLUMNS = tl.constexpr(7)
_FIRST_COUNT = tl.constexpr(2)  # state.Count.FINITE


class _State(NamedTuple):
    """A state; in `counts` the ULP distance is still an ordinary number."""

    reals: Any  # the first eight [K]
    counts: Any  # from FINITE to MAX_ULP [K]
    rows: Any
    numel: Any
    worst: Any  # reals[5]
    token: Any
    feature: Any
    reference: Any
    candidate: Any


@triton.jit
def _read(reals, counts):
    """The state as it is."""
    field_K = tl.arange(0, 8)
    count_K = tl.load(counts + _FIRST_COUNT + field_K)
    return _State(
        tl.load(reals + field_K),
        tl.where(field_K == 7, count_K - tl.full((), -(2**63), tl.int64), count_K),
        tl.load(counts),
        tl.load(counts + 1),
        tl.load(reals + 5),
        tl.load(counts + 10),
        tl.load(counts + 11),
        tl.load(reals + 8),
        tl.load(reals + 9),
    )


@triton.jit
def _write(state, reals, counts):
    tl.debug_barrier()  # other warps read what one warp writes
    field_K = tl.arange(0, 8)
    count_K = tl.where(field_K == 7, state.counts + tl.full((), -(2**63), tl.int64), state.counts)
    tl.store(reals + field_K, state.reals)
    tl.store(counts + _FIRST_COUNT + field_K, count_K)
    tl.store(counts, state.rows)
    tl.store(counts + 1, state.numel)
    tl.store(counts + 10, state.token)
    tl.store(counts + 11, state.feature)
    tl.store(reals + 8, state.reference)
    tl.store(reals + 9, state.candidate)


@triton.jit
def _joined(reals, counts, partials, number):
    """Joins a pair's partials: fields [K], the worst difference, and the first partial that has it."""
    BLOCK: tl.constexpr = 512
    field_K = tl.arange(0, 8)
    field_K1 = field_K[:, None]
    none_K1 = tl.where(field_K1 == 7, float("inf"), tl.where(field_K1 == 5, -1.0, 0.0)).to(tl.float64)
    reals_KP = none_K1 + tl.zeros((8, BLOCK), tl.float64)
    counts_KP = tl.zeros((8, BLOCK), tl.int64)
    worst_P, first_P = tl.full((BLOCK,), -1.0, tl.float64), tl.full((BLOCK,), FAR, tl.int32)
    for start in range(0, number.to(tl.int32), BLOCK):
        place_P = start + tl.arange(0, BLOCK)
        here_P = place_P < number
        place_KP = field_K1 * partials + place_P[None, :]
        real_KP = tl.where(here_P[None, :], tl.load(reals + place_KP, here_P[None, :]), none_K1)
        reals_KP = _merged_reals(field_K1, reals_KP, real_KP)
        counts_KP = _merged_counts(field_K1, counts_KP, tl.load(counts + place_KP, here_P[None, :], other=0))
        max_P = tl.load(reals + 5 * partials + place_P, here_P, other=-1.0)
        first_P = tl.where(max_P > worst_P, place_P, first_P)
        worst_P = larger(worst_P, max_P)
    worst = tl.reduce(worst_P, 0, larger)
    first = tl.min(tl.where(worst_P == worst, first_P, FAR), 0)
    extreme_K = tl.where(field_K == 7, tl.min(reals_KP, 1), tl.max(reals_KP, 1))
    reals_K = tl.where(field_K < 5, tl.sum(reals_KP, 1), extreme_K)
    return reals_K, tl.where(field_K == 7, tl.max(counts_KP, 1), tl.sum(counts_KP, 1)), worst, first


@triton.jit
def _merged_reals(field, earlier, later):
    """Five sums, two maxima, a minimum, as `state.Real` numbers them."""
    extreme = tl.where(field == 7, tl.minimum(earlier, later), tl.maximum(earlier, later))
    return tl.where(field < 5, earlier + later, extreme)


@triton.jit
def _merged_counts(field, earlier, later):
    """Seven sums and a maximum."""
    return tl.where(field == 7, tl.maximum(earlier, later), earlier + later)


@triton.jit
def _merged(state, target):
    """`state.merge` with a pair's partials."""
    reals, partials = tl.load(target + 2).to(tl.pointer_type(tl.float64)), tl.load(target + 3)
    counts = (reals + PARTIAL_REALS * partials).to(tl.pointer_type(tl.int64))
    N, F = tl.load(target + 5), tl.load(target + 6)
    reals_K, counts_K, worst, first = _joined(reals, counts, partials, tl.load(target + 4))
    worse = worst > state.worst
    field_K = tl.arange(0, 8)
    return _State(
        _merged_reals(field_K, state.reals, reals_K),
        _merged_counts(field_K, state.counts, counts_K),
        state.rows + N,
        state.numel + N * F,
        larger(state.worst, worst),
        tl.where(worse, state.rows + tl.load(counts + 8 * partials + first, worse, other=0), state.token),
        tl.where(worse, tl.load(counts + 9 * partials + first, worse, other=0), state.feature),
        tl.where(worse, tl.load(reals + 8 * partials + first, worse, other=0), state.reference),
        tl.where(worse, tl.load(reals + 9 * partials + first, worse, other=0), state.candidate),
    )


@triton.jit(do_not_specialize=["targets"])
def join(table, targets):
    """Adds each target's partials to its state, in place; targets of one state stand side by side, in their order.

    A program a target: the first one of a state takes them all, the others nothing.
    """
    at = tl.program_id(0)
    target = table + at * TARGET_COLUMNS
    address = tl.load(target)
    if (at == 0) | (tl.load(target - TARGET_COLUMNS, at > 0, other=0) != address):
        reals = address.to(tl.pointer_type(tl.float64))
        counts = tl.load(target + 1).to(tl.pointer_type(tl.int64))
        state = _read(reals, counts)
        while tl.load(table + at * TARGET_COLUMNS, at < targets, other=0) == address:
            state = _merged(state, table + at * TARGET_COLUMNS)
            at += 1
        _write(state, reals, counts)
