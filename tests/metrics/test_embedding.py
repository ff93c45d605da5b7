"""Embedding figures against the definitions, an element at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.metrics.figures import EmbeddingFigures, embedding_figures, neighbours_changed
from tests.metrics import oracle

_vectors = st.lists(st.floats(-1e4, 1e4, width=16), min_size=3, max_size=3)


def figures_of(reference_SD: torch.Tensor, candidate_SD: torch.Tensor) -> list[EmbeddingFigures]:
    return [EmbeddingFigures(*row) for row in embedding_figures(reference_SD, candidate_SD).tolist()]


def normalised(vector: list[float]) -> list[float]:
    norm = math.sqrt(math.fsum(x * x for x in vector))
    return [x / norm for x in vector] if norm else vector


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(_vectors, _vectors), min_size=1, max_size=4), st.sampled_from([torch.float16, torch.float32]))
def test_equals_the_definitions(texts: list[tuple[list[float], list[float]]], dtype: torch.dtype) -> None:
    reference_SD = torch.tensor([reference for reference, _ in texts], dtype=torch.float32)
    candidate_SD = torch.tensor([candidate for _, candidate in texts], dtype=dtype)
    figures = figures_of(reference_SD, candidate_SD)
    for (reference, candidate), ours in zip(texts, figures, strict=True):
        pairs = list(zip(normalised(reference), normalised(candidate), strict=True))
        differences = [abs(c - r) for r, c in pairs]
        assert ours.cosine == pytest.approx(oracle.cosine(reference, candidate), abs=1e-12)
        assert ours.max_abs == pytest.approx(max(differences), abs=1e-12)
        assert ours.mean_abs == pytest.approx(math.fsum(differences) / 3, abs=1e-12)


def test_scale_does_not_matter_and_equal_is_exactly_one() -> None:
    vectors = torch.randn(2, 64, generator=torch.Generator().manual_seed(0))
    assert [tuple(text) for text in figures_of(vectors, vectors * 4)] == [(1.0, 0.0, 0.0)] * 2


def test_zeros_and_nan() -> None:
    zeros, ones = torch.zeros(1, 2), torch.ones(1, 2)
    assert figures_of(zeros, zeros)[0].cosine == 1.0
    assert figures_of(zeros, ones)[0].cosine == 0.0
    for bad in (math.nan, math.inf):
        assert all(map(math.isnan, figures_of(ones, torch.tensor([[1.0, bad]]))[0]))


def test_vectors_that_are_not_to_be_normalised_are_compared_as_they_are() -> None:
    figures = embedding_figures(torch.tensor([[3.0, 4.0]]), torch.tensor([[6.0, 8.0]]), normalize=False)
    assert figures.tolist() == [[1.0, 4.0, 3.5]]


def test_a_text_changes_its_nearest_neighbour_where_another_is_nearer() -> None:
    reference_SD = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert neighbours_changed(reference_SD, 5 * reference_SD) == 0
    moved_SD = torch.tensor([[1.0, 0.0], [0.1, 0.9], [0.0, 1.0]])  # the second goes over to the third
    assert neighbours_changed(reference_SD, moved_SD) == 1
    assert neighbours_changed(reference_SD[:1], moved_SD[:1]) == 0
