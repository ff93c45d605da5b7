"""The measures of `pair.py` on the CPU: one pass over each pair, by all of torch's threads. Needs numba.

`pair.py` defines every figure; this fills the same `State`. Counts, maxima, ULPs and places are equal to it; sums,
which are float64 here too, up to the order of additions. That order depends on the shape alone: rows are cut into
blocks, a block is measured by one thread, and blocks are joined in order. So the same tensors give the same bits on one
machine, whatever the number of threads.

The loops are in `kernels.py`. Shapes: N tokens, F features, E elements, B blocks, K fields of a state.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sweeper.metrics.cpu import kernels
from sweeper.metrics.cpu.compiled import DTYPES, as_bits, run
from sweeper.metrics.fast import Tables
from sweeper.metrics.precision import coarser_dtype, default_tolerance
from sweeper.metrics.sums import Count, Pair, Real

__all__ = ["DTYPES", "update"]

# Elements of a block, about 0.1 ms: enough that handing it to a thread costs little, few enough to share a pair evenly.
_BLOCK = 2**16
_FORM = {
    torch.float16: kernels.FLOAT16,
    torch.bfloat16: kernels.BFLOAT16,
    torch.float32: kernels.FLOAT32,
}


def update(pairs: Sequence[Pair], tables: Tables | None = None) -> None:
    """Adds each pair's rows to its state, in place; of pairs that share a state, one after the other.

    Pairs that are the same memory on both sides (a block that returns its last module's output) are read once.

    Args:
        tables: of a GPU's launches; not used.
    """
    measured: dict[tuple[Any, ...], tuple[list[tuple[Any, ...]], np.ndarray, np.ndarray]] = {}
    places = [_place(pair) for pair in pairs]
    for place, pair in zip(places, pairs, strict=True):
        if place not in measured:
            measured[place] = _blocks(pair)
    run(kernels.measure, [block for blocks, _, _ in measured.values() for block in blocks])
    for place, pair in zip(places, pairs, strict=True):
        _, reals_BK, counts_BK = measured[place]
        kernels.join(reals_BK, counts_BK, pair.state.reals.numpy(), pair.state.counts.numpy())


def _place(pair: Pair) -> tuple[Any, ...]:
    _, reference, candidate = pair
    return (
        *(reference.data_ptr(), candidate.data_ptr(), reference.dtype, candidate.dtype),
        *(reference.shape, reference.stride(), candidate.stride()),
    )


def _blocks(pair: Pair) -> tuple[list[tuple[Any, ...]], np.ndarray, np.ndarray]:
    """The arguments of `kernels.measure` for each block of a pair, and the states that it fills, a row a block."""
    _, reference_NF, candidate_NF = pair
    N, F = reference_NF.shape
    forms, rtol = _forms(reference_NF.dtype, candidate_NF.dtype)
    step = max(1, _BLOCK // F) * F
    count = -(-N * F // step)
    reals_BK, counts_BK = np.empty((count, len(Real))), np.empty((count, len(Count)), np.int64)
    reference_E, candidate_E = as_bits(reference_NF).reshape(-1), as_bits(candidate_NF).reshape(-1)
    blocks = [
        (reference_E[start : start + step], candidate_E[start : start + step], forms, F, rtol, *numbers)
        for start, *numbers in zip(range(0, N * F, step), reals_BK, counts_BK, strict=True)
    ]
    return blocks, reals_BK, counts_BK


@functools.cache
def _forms(reference: torch.dtype, candidate: torch.dtype) -> tuple[tuple[int, int, int], float]:
    """The formats of both and the coarser one, as `kernels` numbers them, and the relative tolerance."""
    coarser = coarser_dtype(reference, candidate)
    return (_FORM[reference], _FORM[candidate], _FORM[coarser]), default_tolerance(coarser).rtol
