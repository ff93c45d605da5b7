"""Rows meet by name and order, however each side splits a batch; grouping and overwriting change no figure."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweeper.comparator.hooks import ModuleOutput
from sweeper.comparator.module_pairs import ModulePairs
from sweeper.errors import AlignmentError
from sweeper.metrics.pair import finish, measure
from sweeper.records.cell import PairMeasures


def output(name: str, tensor_NF: Tensor) -> ModuleOutput:
    return ModuleOutput(name, "Linear", tensor_NF, tensor_NF)


def figures(pairs: ModulePairs) -> dict[str, PairMeasures]:
    return dict(zip(pairs.modules, finish([pair.accumulator for pair in pairs.modules.values()]), strict=True))


_cuts = st.sets(st.integers(1, 4)).map(sorted)


@settings(deadline=None, max_examples=30)
@given(_cuts, _cuts)
def test_rows_meet_however_each_side_splits_them(reference: list[int], candidate: list[int]) -> None:
    torch.manual_seed(0)
    left_NF, right_NF = torch.randn(2, 5, 3).unbind()
    pairs = ModulePairs()
    for piece in left_NF.tensor_split(reference):
        pairs.give("m", piece)
    for piece in right_NF.tensor_split(candidate):
        pairs.take(output("m", piece))
    pairs.end_batch()
    alone = measure(left_NF, right_NF)
    ours = figures(pairs)["m"]
    sums = {"mean_abs", "rms", "rel_l2", "sqnr_db", "cosine"}
    assert ours.model_dump(exclude=sums) == alone.model_dump(exclude=sums)
    assert ours.rel_l2 == pytest.approx(alone.rel_l2, rel=1e-12)


def test_a_pair_waits_until_all_its_rows_are_there() -> None:
    pairs = ModulePairs()
    candidate = output("m", torch.ones(3, 2))
    for _ in range(2):
        assert not pairs.take(candidate, more_may_come=True)
        pairs.give("m", torch.ones(2, 2))
    assert pairs.take(candidate, more_may_come=True)
    assert figures(pairs)["m"].numel == 6


@pytest.mark.parametrize("launch_bytes", [0, 100, 2**20])
def test_what_is_overwritten_while_it_waits_was_copied(launch_bytes: int) -> None:
    pairs = ModulePairs(steady={"steady"}, launch_bytes=launch_bytes)
    for batch in range(3):
        for name in ("steady", "overwritten"):
            pairs.give(name, torch.zeros(2, 4))
            tensor_NF = torch.full((2, 4), float(batch + 1))
            pairs.take(output(name, tensor_NF))
            if name == "overwritten":
                tensor_NF.fill_(99)
        pairs.end_batch()
    measured = figures(pairs)
    assert [measured[name].max_abs for name in ("steady", "overwritten")] == [3, 3]
    assert measured["overwritten"].mean_abs == 2


def test_an_output_that_only_one_side_has_names_both_sets() -> None:
    pairs = ModulePairs()
    pairs.give("common", torch.ones(2, 2))
    pairs.give("q_norm", torch.ones(2, 2))
    pairs.take(output("common", torch.ones(2, 2)))
    pairs.take(output("adapter", torch.ones(2, 2)))
    with pytest.raises(AlignmentError, match="only in the reference: q_norm; only in the candidate: adapter"):
        pairs.end_batch()


@pytest.mark.parametrize("shape", [(5, 8), (4, 4)])
def test_outputs_of_two_shapes_name_both_shapes(shape: tuple[int, int]) -> None:
    pairs = ModulePairs()
    pairs.give("m", torch.ones(shape))
    with pytest.raises(AlignmentError, match=rf"m: \({shape[0]}, {shape[1]}\) .* in the reference, \(5, 4\) in the"):
        pairs.take(output("m", torch.ones(5, 4)))
