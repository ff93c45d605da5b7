"""Which texts share a forward, and which are compared together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeper.config import Batch, Cell
from sweeper.inputs.batching import compared_together, forwards_of, idle
from sweeper.inputs.texts import batches
from tests.composing import request_of

(CELL,) = request_of("checkpoint=tiny_llama", "inputs=token_ids", "inputs.token_ids=[[1]]", "inputs.batch_size=3").cells
LENGTHS = (5, 3, 7, 2, 4, 1)


def cell_of(batch: str, **inputs: Any) -> Cell:
    return CELL.model_copy(update={"batch": Batch(batch), "inputs": CELL.inputs.model_copy(update=inputs)})


def ids(lengths: tuple[int, ...]) -> list[list[int]]:
    return [[1] * length for length in lengths]


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ("alone", [(0,), (1,), (2,), (3,), (4,), (5,)]),
        ("of_2", [(0, 1), (2, 3), (4, 5)]),
        ("of_8", [(0, 1, 2, 3, 4, 5)]),
        ("of_2_sorted", [(0, 2), (1, 4), (3, 5)]),
        ("inputs", [(0, 1, 2), (3, 4, 5)]),
    ],
)
def test_texts_share_forwards_as_the_batch_says(batch: str, expected: list[tuple[int, ...]]) -> None:
    assert forwards_of(cell_of(batch), ids(LENGTHS)) == expected


def test_some_texts_run_in_the_forwards_that_they_fill_else_as_if_alone() -> None:
    cell, token_ids = cell_of("of_2_sorted"), ids(LENGTHS)
    assert forwards_of(cell, token_ids, (0, 1, 2, 4)) == [(0, 2), (1, 4)]
    assert forwards_of(cell, token_ids, (0, 1)) == [(0, 1)]


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=70).map(tuple)
kinds = st.sampled_from([batch.value for batch in Batch])


@given(lengths, kinds, kinds, st.integers(1, 9))
def test_groups_hold_every_text_once_and_cut_no_forward(
    lengths: tuple[int, ...], left: str, right: str, batch_size: int
) -> None:
    token_ids = ids(lengths)
    sides = [cell_of(batch, batch_size=batch_size) for batch in (left, right)]
    shared = [forwards_of(side, token_ids) for side in sides]
    groups = compared_together(*shared)
    assert sorted(text for group in groups for text in group) == list(range(len(lengths)))
    for side, forwards in zip(sides, shared, strict=True):
        assert all(any(set(forward) <= set(group) for group in groups) for forward in forwards)
        inside = [forward for group in groups for forward in forwards_of(side, token_ids, group)]
        assert sorted(inside) == sorted(forwards)
    if left == right:
        assert groups == shared[0]


@given(lengths, st.integers(1, 9))
def test_by_default_texts_share_forwards_as_the_inputs_say(lengths: tuple[int, ...], batch_size: int) -> None:
    token_ids = ids(lengths)
    assert forwards_of(cell_of("inputs", batch_size=batch_size), token_ids) == batches(token_ids, batch_size)


@pytest.mark.parametrize(
    ("batch", "lengths", "reason"),
    [
        ("of_8", LENGTHS, "there are only 6 texts, which share one forward"),
        ("of_2_sorted", (9, 8, 7, 6), "sorted by length, the texts share the same forwards"),
        ("of_2_sorted", LENGTHS, None),
        ("of_2", LENGTHS, None),
        ("alone", LENGTHS, None),
        ("inputs", LENGTHS, None),
    ],
)
def test_a_batch_that_acts_as_another_is_told(batch: str, lengths: tuple[int, ...], reason: str | None) -> None:
    assert idle(cell_of(batch), ids(lengths)) == reason
