"""What is accumulated of a pair of tensors: one float64 and one int64 vector, and the rule that joins two of them.

Whoever fills these two vectors (plain torch in `pair.py`, a fused kernel) gets the same figures out of `pair.finish`.
"""

from __future__ import annotations

import functools
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from sweeper.metrics.precision import INT64_MIN


class Real(IntEnum):
    """Index in `State.reals`. Only elements that are finite on both sides take part."""

    ABS_SUM = 0  # sum of |candidate - reference|; the next four are sums too
    REFERENCE_SQUARES = 1
    CANDIDATE_SQUARES = 2
    DIFFERENCE_SQUARES = 3  # of candidate - reference
    PRODUCTS = 4  # reference * candidate
    MAX_ABS = 5  # of |candidate - reference|; -1 where there is no element
    MAX_EXCESS = 6  # of |candidate - reference| - rtol |reference|; 0 where nothing is larger
    MIN_TOKEN_COSINE = 7  # +inf where there is no token
    WORST_REFERENCE = 8  # the values at the first element, in row order, that reaches MAX_ABS
    WORST_CANDIDATE = 9


class Count(IntEnum):
    """Index in `State.counts`."""

    ROWS = 0  # tokens
    NUMEL = 1  # elements
    FINITE = 2  # elements that are finite on both sides
    UNEQUAL = 3  # of the finite ones, those whose numbers differ
    NONFINITE_MISMATCH = 4  # of the others, those that are not the same
    REFERENCE_NAN = 5
    CANDIDATE_NAN = 6
    REFERENCE_INF = 7
    CANDIDATE_INF = 8
    MAX_ULP = 9  # minus 2**63: unsigned 64 bits in a signed number
    WORST_TOKEN = 10  # row among all rows of the state; -1 where there is no finite element
    WORST_FEATURE = 11


_SUMS = slice(Real.ABS_SUM, Real.MAX_ABS)
_MAXIMA = slice(Real.MAX_ABS, Real.MIN_TOKEN_COSINE)
_MINIMA = slice(Real.MIN_TOKEN_COSINE, Real.WORST_REFERENCE)
_WORST_VALUES = slice(Real.WORST_REFERENCE, len(Real))
_TOTALS = slice(Count.ROWS, Count.MAX_ULP)
_ULP = slice(Count.MAX_ULP, Count.WORST_TOKEN)
_WORST_PLACE = slice(Count.WORST_TOKEN, len(Count))


class State(NamedTuple):
    """Everything that `PairMeasures` is computed from.

    Attributes:
        reals: float64, as `Real` numbers them.
        counts: int64, as `Count` numbers them. Exact.
    """

    reals: Tensor
    counts: Tensor


class Pair(NamedTuple):
    """Two tensors [N, F] of at least one element, same shape and device, and the state that they are added to."""

    state: State
    reference_NF: Tensor
    candidate_NF: Tensor


def empty_state(device: torch.device | str) -> State:
    """The state of no rows: `merge` with it changes nothing."""
    return State(*(numbers.clone() for numbers in _template(torch.device(device), _current(device))))


def _current(device: torch.device | str) -> int | None:
    """Which GPU a device without a number is."""
    device = torch.device(device)
    return torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index


@functools.cache
def _template(device: torch.device, _number: int | None) -> State:
    """`empty_state`, for copies: sending it to a GPU waits for all that the GPU has to do."""
    inf, nan = float("inf"), float("nan")
    reals = [0.0] * Real.MAX_ABS + [-1.0, 0.0, inf, nan, nan]
    counts = [0] * Count.MAX_ULP + [INT64_MIN, -1, -1]
    return State(
        torch.tensor(reals, dtype=torch.float64, device=device), torch.tensor(counts, dtype=torch.int64, device=device)
    )


def empty_block(states: int, device: torch.device | str) -> State:
    """`empty_state` so many times, a row each ([S, K])."""
    reals, counts = _template(torch.device(device), _current(device))
    return State(reals.repeat(states, 1), counts.repeat(states, 1))


def rows_of(block: State) -> list[State]:
    """Each state of a block [S, K], in the block's memory."""
    return [State(*row) for row in zip(*block, strict=True)]


def merge(earlier: State, later: State) -> State:
    """The state of the rows of `earlier`, then those of `later`. Pure; of equal worst elements the first stays."""
    reals, counts = earlier.reals, earlier.counts
    worse = later.reals[Real.MAX_ABS] > reals[Real.MAX_ABS]
    later_place = later.counts[_WORST_PLACE].clone()
    later_place[0] += counts[Count.ROWS]
    return State(
        torch.cat(
            [
                reals[_SUMS] + later.reals[_SUMS],
                torch.maximum(reals[_MAXIMA], later.reals[_MAXIMA]),
                torch.minimum(reals[_MINIMA], later.reals[_MINIMA]),
                torch.where(worse, later.reals[_WORST_VALUES], reals[_WORST_VALUES]),
            ]
        ),
        torch.cat(
            [
                counts[_TOTALS] + later.counts[_TOTALS],
                torch.maximum(counts[_ULP], later.counts[_ULP]),
                torch.where(worse, later_place, counts[_WORST_PLACE]),
            ]
        ),
    )


def merge_rows(rows: State) -> State:
    """`merge` of many states on the CPU, a row each ([S, K]), one after the other and bit for bit the same."""
    reals, counts = rows
    worst = reals[:, Real.MAX_ABS].argmax()  # the first of equal ones
    place = counts[worst, _WORST_PLACE].clone()
    if place[0] >= 0:
        place[0] += counts[:worst, Count.ROWS].sum()
    sums = reals[:, _SUMS].cumsum(0)[-1]  # in this order, unlike sum
    return State(
        torch.cat([sums, reals[:, _MAXIMA].amax(0), reals[:, _MINIMA].amin(0), reals[worst, _WORST_VALUES]]),
        torch.cat([counts[:, _TOTALS].sum(0), counts[:, _ULP].amax(0), place]),
    )
