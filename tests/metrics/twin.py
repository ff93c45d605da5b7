"""Pairs of tensors, and what plain torch leaves of them: the definition that the fused code is held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sweeper.metrics.pair import PairAccumulator
from sweeper.metrics.sums import Count, Real, State


def a_pair(
    shape: tuple[int, int], reference: torch.dtype, candidate: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(shape[1])
    values_NF, noise_NF = torch.randn(2, *shape, generator=generator).unbind()
    reference_NF = (values_NF * scale).to(reference)
    return reference_NF, (reference_NF.float() * (1 + 0.01 * noise_NF)).to(candidate)


def spoil(reference_NF: Tensor, candidate_NF: Tensor) -> None:
    """Puts NaN and Inf into both: alone, on both sides, and a whole row of them."""
    rows, features = reference_NF.shape
    reference_NF[0, 0] = math.nan
    candidate_NF[-1, -1] = math.inf
    reference_NF[-1, features // 2] = candidate_NF[-1, features // 2] = -math.inf
    reference_NF[rows // 2] = candidate_NF[rows // 2] = math.nan


def by_the_twin(pairs: list[tuple[Tensor, Tensor]]) -> State:
    accumulator = PairAccumulator(pairs[0][0].dtype, pairs[0][1].dtype, "cpu")
    for reference_NF, candidate_NF in pairs:
        accumulator._update(reference_NF.cpu(), candidate_NF.cpu())
    return accumulator.state


def assert_same(ours: State, twin: State) -> None:
    assert dict(zip(Count, ours.counts.tolist(), strict=True)) == dict(zip(Count, twin.counts.tolist(), strict=True))
    exact = [Real.MAX_ABS, Real.WORST_REFERENCE, Real.WORST_CANDIDATE]
    torch.testing.assert_close(ours.reals[exact], twin.reals[exact], rtol=0, atol=0, equal_nan=True)
    # The products can cancel; their error is that of the squares.
    scale = float(twin.reals[[Real.REFERENCE_SQUARES, Real.CANDIDATE_SQUARES]].amax())
    assert abs(float(ours.reals[Real.PRODUCTS] - twin.reals[Real.PRODUCTS])) <= 1e-12 * scale
    rest = [real for real in Real if real not in exact and real != Real.PRODUCTS]
    torch.testing.assert_close(ours.reals[rest], twin.reals[rest], rtol=1e-12, atol=1e-15, equal_nan=True)
