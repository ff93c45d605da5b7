"""Turns states into figures, on the host: a column a figure over all pairs at once, as `docs/measures.md` defines.

Shapes: A pairs, K numbers of a `State`; S texts, D hidden.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sweeper.metrics.precision import INT64_MIN, Tolerance
from sweeper.metrics.sums import Count, Real, State


def cosine(
    reference_squares: Tensor, candidate_squares: Tensor, difference_squares: Tensor, products: Tensor
) -> Tensor:
    """The cosine from sums: exactly 1 where nothing differs, 0 where one side is 0, NaN where one overflowed."""
    norms = reference_squares.sqrt() * candidate_squares.sqrt()
    ratio = (products / norms.masked_fill_(norms.isinf(), torch.nan)).clamp_(-1, 1)
    ratio.masked_fill_((reference_squares == 0) | (candidate_squares == 0), 0.0)
    return ratio.masked_fill_(difference_squares == 0, 1.0)


def rel_l2(reference_squares: Tensor, difference_squares: Tensor) -> Tensor:
    """The 2-norm of the difference over that of the reference, from sums: exactly 0 where nothing differs."""
    return (difference_squares.sqrt() / reference_squares.sqrt()).masked_fill_(difference_squares == 0, 0.0)


class Distance(NamedTuple):
    """Those fields of `PairMeasures` that say how far two tensors are apart, and whether that means anything."""

    rel_l2: float
    finite: int
    nonfinite_mismatch: int


def distance(state: State) -> Distance:
    """The same figures as those of `figures`, bit for bit, with a single transfer from the device."""
    reals_K1, counts_K1 = _on_host([state])
    finite, mismatch = counts_K1[Count.FINITE].item(), counts_K1[Count.NONFINITE_MISMATCH].item()
    relative = rel_l2(reals_K1[Real.REFERENCE_SQUARES], reals_K1[Real.DIFFERENCE_SQUARES]).item()
    return Distance(relative if finite else math.nan, int(finite), int(mismatch))


def figures(states: Sequence[State], tolerances: Sequence[Tolerance]) -> list[dict[str, Any]]:
    """The fields of `PairMeasures` of each pair, with a single transfer from the device that all states share."""
    if not states:
        return []
    columns = _columns(*_on_host(states), tolerances)
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _on_host(states: Sequence[State]) -> State:
    """A block of the states, a column each ([K, A])."""
    reals_AK = torch.stack([state.reals for state in states])
    counts_AK = torch.stack([state.counts for state in states])
    host_AK = torch.cat([reals_AK.view(torch.int64), counts_AK], dim=1).cpu()
    # contiguous: torch may use another square root and logarithm for what is not, which differ in the last bit
    host_KA = host_AK.T.contiguous()
    return State(host_KA[: len(Real)].view(torch.float64), host_KA[len(Real) :])


def _columns(reals_KA: Tensor, counts_KA: Tensor, tolerances: Sequence[Tolerance]) -> dict[str, list[Any]]:
    """The columns by field of `PairMeasures`, with a value a pair."""
    numel, finite, mismatch = counts_KA[[Count.NUMEL, Count.FINITE, Count.NONFINITE_MISMATCH]]
    rtol, atol = torch.tensor(tolerances, dtype=torch.float64).unbind(1)
    columns = {
        "numel": numel,
        "finite": finite,
        "equal_fraction": (numel - counts_KA[Count.UNEQUAL] - mismatch).double() / numel,  # 0 / 0 is NaN
        **{name: column.masked_fill(finite == 0, torch.nan) for name, column in _reals(reals_KA, counts_KA).items()},
        "allclose": (reals_KA[Real.MAX_EXCESS] <= atol) & (mismatch == 0),
        "rtol": rtol,
        "atol": atol,
        "reference_nan": counts_KA[Count.REFERENCE_NAN],
        "candidate_nan": counts_KA[Count.CANDIDATE_NAN],
        "reference_inf": counts_KA[Count.REFERENCE_INF],
        "candidate_inf": counts_KA[Count.CANDIDATE_INF],
        "nonfinite_mismatch": mismatch,
    }
    worst = {
        "worst_token": counts_KA[Count.WORST_TOKEN],
        "worst_feature": counts_KA[Count.WORST_FEATURE],
        "worst_reference": reals_KA[Real.WORST_REFERENCE],
        "worst_candidate": reals_KA[Real.WORST_CANDIDATE],
    }
    listed = {name: column.tolist() for name, column in columns.items()}
    for name, column in worst.items():
        values = zip(column.tolist(), listed["finite"], strict=True)
        listed[name] = [value if some else None for value, some in values]
    return listed


def _reals(reals_KA: Tensor, counts_KA: Tensor) -> dict[str, Tensor]:
    """The figures that speak of finite elements only; of pairs without one, anything."""
    finite, ulp = counts_KA[Count.FINITE], counts_KA[Count.MAX_ULP]
    references, candidates = reals_KA[Real.REFERENCE_SQUARES], reals_KA[Real.CANDIDATE_SQUARES]
    differences = reals_KA[Real.DIFFERENCE_SQUARES]
    relative = rel_l2(references, differences)
    return {
        "max_abs": reals_KA[Real.MAX_ABS],
        "mean_abs": reals_KA[Real.ABS_SUM] / finite,
        "rms": (differences / finite).sqrt(),
        "rel_l2": relative,
        "sqnr_db": -20 * relative.log10(),
        "cosine": cosine(references, candidates, differences, reals_KA[Real.PRODUCTS]),
        "min_token_cosine": reals_KA[Real.MIN_TOKEN_COSINE],
        "max_ulp": (ulp ^ INT64_MIN).view(torch.uint64).double(),
    }


class EmbeddingFigures(NamedTuple):
    """How the two L2-normalised embeddings of one text differ."""

    cosine: float
    max_abs: float
    mean_abs: float


@torch.no_grad()
def embedding_figures(reference_SD: Tensor, candidate_SD: Tensor, *, normalize: bool = True) -> Tensor:
    """`EmbeddingFigures` of each text, [S, 3], in float64, from pooled vectors that are not normalised yet.

    Args:
        normalize: scale each to length 1 first.

    Does not synchronise with the device. A vector of zeros stays one: its cosine with another is 0, with another of
    zeros 1. A text with a NaN or infinity on either side has NaN figures.
    """
    if normalize:
        reference_SD, candidate_SD = normalised(reference_SD), normalised(candidate_SD)
    difference_SD = candidate_SD - reference_SD
    cosine_S = cosine(
        torch.linalg.vecdot(reference_SD, reference_SD),
        torch.linalg.vecdot(candidate_SD, candidate_SD),
        torch.linalg.vecdot(difference_SD, difference_SD),
        torch.linalg.vecdot(reference_SD, candidate_SD),
    )
    abs_SD = difference_SD.abs()
    return torch.stack([cosine_S, abs_SD.amax(1), abs_SD.mean(1)], dim=1)


def neighbours_changed(reference_SD: Tensor, candidate_SD: Tensor) -> Tensor:
    """Counts the texts whose nearest other one, by cosine, is another; a text alone has none.

    Does not synchronise with the device.
    """
    return (_nearest(reference_SD) != _nearest(candidate_SD)).sum()


def _nearest(vectors_SD: Tensor) -> Tensor:
    """The index of the text nearest to each; of equally near ones the first."""
    vectors_SD = normalised(vectors_SD)
    return (vectors_SD @ vectors_SD.mT).fill_diagonal_(-torch.inf).argmax(dim=1)


def normalised(vectors_SD: Tensor) -> Tensor:
    """The vectors at length 1, in float64; a vector of zeros stays one."""
    vectors_SD = vectors_SD.double()
    norm_S1 = torch.linalg.vector_norm(vectors_SD, dim=1, keepdim=True)
    return vectors_SD / norm_S1.masked_fill(norm_S1 == 0, 1)
