"""Figures of texts against those of each text alone, in whatever order and batches the texts came."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.comparator.text_figures import TextAccumulator
from sweeper.metrics.pair import PairAccumulator, finish, measure
from sweeper.metrics.sums import merge, merge_rows

LENGTHS = [3, 1, 4, 2]


@settings(deadline=None, max_examples=30)
@given(st.permutations(range(4)), st.integers(1, 4), st.sampled_from(["finite", "nan", "no finite element", "equal"]))
def test_any_order_gives_the_figures_of_each_text_and_of_all(order: list[int], batch: int, what: str) -> None:
    torch.manual_seed(0)
    references = [torch.randn(length, 3).bfloat16() for length in LENGTHS]
    candidates = [reference + (what != "equal") * torch.randn_like(reference) / 8 for reference in references]
    if what == "nan":
        candidates[2][1, 1] = torch.nan
    if what == "no finite element":
        candidates[0].fill_(torch.inf)
    accumulator = TextAccumulator(LENGTHS)
    for start in range(0, 4, batch):
        texts = order[start : start + batch]
        sides = (torch.cat([side[text] for text in texts]) for side in (references, candidates))
        embeddings = (torch.stack([side[text][-1] for text in texts]) for side in (references, candidates))
        accumulator.update(texts, tuple(sides), tuple(embeddings))
    whole, figures = accumulator.finish()
    accumulators = []
    for text, pair in enumerate(zip(references, candidates, strict=True)):
        alone = measure(*pair)
        assert (figures[text].text, figures[text].tokens) == (text, LENGTHS[text])
        ours = figures[text].output_max_abs, figures[text].output_equal_fraction, figures[text].output_cosine
        assert str(ours) == str((alone.max_abs, alone.equal_fraction, alone.cosine))  # NaN too
        accumulators.append(PairAccumulator(torch.bfloat16, torch.bfloat16, "cpu"))
        accumulators[-1].update(*pair)
    merged = PairAccumulator(torch.bfloat16, torch.bfloat16, "cpu")
    merged.state = functools.reduce(merge, [accumulator.state for accumulator in accumulators], merged.state)
    assert whole.model_dump_json() == finish([merged])[0].model_dump_json()


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_merging_rows_is_merging_one_after_the_other(rows: int) -> None:
    torch.manual_seed(0)
    accumulators = [PairAccumulator(torch.float32, torch.float32, "cpu") for _ in range(rows)]
    for index, accumulator in enumerate(accumulators):
        reference_NF = torch.randn(index % 3 + 1, 4)
        accumulator.update(reference_NF, torch.randn_like(reference_NF).round(decimals=1))
    states = [accumulator.state for accumulator in accumulators]
    one_by_one = functools.reduce(merge, states)
    at_once = merge_rows(type(one_by_one)(*(torch.stack(tensors) for tensors in zip(*states, strict=True))))
    assert torch.equal(at_once.reals, one_by_one.reals)
    assert torch.equal(at_once.counts, one_by_one.counts)
