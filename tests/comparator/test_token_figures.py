"""Figures by token: those of single rows, of the worst texts, bounded, whatever way the rows come."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sweeper.comparator.comparer import BatchOutputs, Comparer
from sweeper.comparator.hooks import ModuleOutput
from sweeper.comparator.token_figures import MOST_POSITIONS, MOST_TEXTS, WATCHED, TokenAccumulator, token_figures
from sweeper.metrics.pair import measure
from sweeper.records.cell import ModuleRecord


def compared(
    lengths: list[int],
    batches: list[tuple[int, ...]],
    sides: dict[str, tuple[Tensor, Tensor]],
    *,
    pieces: bool = False,
) -> dict[str, ModuleRecord]:
    """Modules by name; `sides` hold the rows of all texts in their order, `pieces` come a text at a time."""
    running = Comparer([[1] * length for length in lengths], is_logits=False)
    starts = [sum(lengths[:text]) for text in range(len(lengths))]
    for texts in batches:
        running.begin_batch(texts)
        rows = [slice(starts[text], starts[text] + lengths[text]) for text in texts]
        for name, pair in sides.items():
            parts = [tuple(side[row] for side in pair) for row in rows]
            whole = [tuple(torch.cat(side) for side in zip(*parts, strict=True))]
            for reference_NF, candidate_NF in parts if pieces else whole:
                running.modules.give(name, reference_NF)
                running.modules.take(ModuleOutput(name, "Block", candidate_NF, candidate_NF))
        outputs = [torch.cat([list(sides.values())[-1][side][row] for row in rows]) for side in (0, 1)]
        embeddings = [torch.ones(len(texts), 4, dtype=torch.float64)] * 2
        running.end_batch(texts, *map(BatchOutputs, outputs, embeddings))
    return {module.name: module for module in running.finish().modules}


def drifting(lengths: list[int], dtype: torch.dtype = torch.bfloat16) -> dict[str, tuple[Tensor, Tensor]]:
    """Two layers and an attention, whose difference grows from text to text."""
    generator = torch.Generator().manual_seed(0)
    reference_NF = torch.randn(sum(lengths), 8, generator=generator)
    scale_N1 = torch.cat([torch.full((length, 1), 4.0**text) for text, length in enumerate(lengths)])
    noise_NF = torch.randn(sum(lengths), 8, generator=generator) * scale_N1
    return {
        "model.layers.0.self_attn": (reference_NF.to(dtype), (reference_NF + 0.05 * noise_NF).to(dtype)),
        "model.layers.0": (reference_NF.to(dtype), (reference_NF + 0.05 * noise_NF).to(dtype)),
        "model.layers.1": (reference_NF.to(dtype), (reference_NF + 0.1 * noise_NF).to(dtype)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_they_are_the_measures_of_single_rows(dtype: torch.dtype) -> None:
    reference_NF, candidate_NF = drifting([3, 2], dtype)["model.layers.1"]
    figures_N2 = token_figures(reference_NF.double(), candidate_NF.double() - reference_NF.double())
    for row, (max_abs, rel_l2) in enumerate(figures_N2.tolist()):
        alone = measure(reference_NF[row : row + 1], candidate_NF[row : row + 1])
        assert max_abs == alone.max_abs
        assert rel_l2 == pytest.approx(alone.rel_l2, rel=1e-14)


@pytest.mark.parametrize("pieces", [False, True])
def test_over_all_tokens_they_have_the_bits_of_the_layer(pieces: bool) -> None:
    lengths = [3, 2, 4]
    modules = compared(lengths, [(0, 2), (1,)], drifting(lengths, torch.float32), pieces=pieces)
    assert modules["model.layers.0.self_attn"].tokens is None  # layers only
    for name in ("model.layers.0", "model.layers.1"):
        tokens, measures = modules[name].tokens, modules[name].measures
        assert tokens is not None
        assert max(tokens.max_abs) == measures.max_abs
        worst = tokens.max_abs.index(measures.max_abs)
        assert (tokens.text[worst], tokens.position[worst]) == (modules[name].worst_text, modules[name].worst_position)


def test_the_worst_texts_stay_in_whatever_batch_they_were() -> None:
    lengths = [2, 3, 2, 3, 2]
    sides = drifting(lengths)
    at_once, in_three = (
        compared(lengths, batches, sides)["model.layers.1"].tokens
        for batches in ([(0, 1, 2, 3, 4)], [(3, 4), (0,), (1, 2)])
    )
    assert at_once == in_three
    assert at_once is not None
    assert list(dict.fromkeys(at_once.text)) == [4, 3, 2][:MOST_TEXTS]
    assert at_once.position == (0, 1, 0, 1, 2, 0, 1)


def test_long_texts_and_many_are_bounded() -> None:
    lengths = [MOST_POSITIONS + 70] * 6  # five of them are more than is watched of a batch
    tokens = compared(lengths, [(0, 1, 2, 3, 4, 5)], drifting(lengths))["model.layers.0"].tokens
    assert tokens is not None
    watched = WATCHED // MOST_POSITIONS
    assert list(dict.fromkeys(tokens.text)) == [*range(watched)][::-1][:MOST_TEXTS]
    assert len(tokens.text) == MOST_TEXTS * MOST_POSITIONS
    assert max(tokens.position) == MOST_POSITIONS - 1


def test_nothing_is_kept_where_nothing_differs() -> None:
    sides = {name: (reference_NF, reference_NF) for name, (reference_NF, _) in drifting([2, 3]).items()}
    assert all(module.tokens is None for module in compared([2, 3], [(0, 1)], sides).values())


def test_a_text_that_is_not_finite_is_the_worst_and_says_so() -> None:
    lengths = [2, 2, 2, 2]
    sides = drifting(lengths)
    sides["model.layers.1"][1][0, 3] = math.nan
    tokens = compared(lengths, [(0, 1), (2, 3)], sides)["model.layers.1"].tokens
    assert tokens is not None
    assert tokens.text[0] == 0
    assert math.isnan(tokens.max_abs[0])
    assert math.isfinite(tokens.max_abs[1])


def test_rows_that_are_no_tokens_have_none() -> None:
    running = TokenAccumulator([3, 2])
    running.begin_batch((0, 1))
    running.take("encoder.layers.0", torch.zeros(2, 4), torch.ones(2, 4))  # a row a text
    running.end_batch(torch.zeros(2))
    assert running.finish() == {}
