"""How the embeddings of texts differ. Shapes: S texts, D hidden."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sweeper.metrics.figures import cosine


class EmbeddingFigures(NamedTuple):
    """How the two L2-normalised embeddings of one text differ."""

    cosine: float
    max_abs: float
    mean_abs: float


@torch.no_grad()
def embedding_figures(reference_SD: Tensor, candidate_SD: Tensor) -> Tensor:
    """`EmbeddingFigures` of each text, [S, 3], in float64, from pooled vectors that are not normalised yet.

    Does not synchronise with the device. A vector of zeros stays one: its cosine with another is 0, with another of
    zeros 1. A text with a NaN or infinity on either side has NaN figures.
    """
    reference_SD, candidate_SD = _normalised(reference_SD), _normalised(candidate_SD)
    difference_SD = candidate_SD - reference_SD
    cosine_S = cosine(
        torch.linalg.vecdot(reference_SD, reference_SD),
        torch.linalg.vecdot(candidate_SD, candidate_SD),
        torch.linalg.vecdot(difference_SD, difference_SD),
        torch.linalg.vecdot(reference_SD, candidate_SD),
    )
    abs_SD = difference_SD.abs()
    return torch.stack([cosine_S, abs_SD.amax(1), abs_SD.mean(1)], dim=1)


def _normalised(vectors_SD: Tensor) -> Tensor:
    vectors_SD = vectors_SD.double()
    norm_S1 = torch.linalg.vector_norm(vectors_SD, dim=1, keepdim=True)
    return vectors_SD / norm_S1.masked_fill(norm_S1 == 0, 1)
