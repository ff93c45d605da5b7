"""The verdict on a telling part of the pairs of many families; `python -m tests.zoo.table` examines all of them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from tests.zoo import language, others
from tests.zoo.examine import examine, missing_packages
from tests.zoo.halves import HALVES
from tests.zoo.pairs import Pair

# Every fifth pair of each half: the pairs of a kind stand together, so that nearly every kind is there.
TELLING = [
    pair
    for half in (language.TUNING, language.HELD_OUT, others.TUNING, others.HELD_OUT)
    for pair in half[::5]
    if not missing_packages(pair)
]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small lose time to threads, and one thread sums in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_the_zoo_is_large_and_a_third_of_it_is_harmless() -> None:
    pairs = [pair for half in HALVES.values() for pair in half]
    assert len({pair.name for pair in pairs}) >= 240
    assert sum(pair.answer == "harmless" for pair in pairs) * 3 >= len(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("pair", TELLING, ids=lambda pair: pair.name)
def test_every_pair_is_judged_and_no_harm_is_waved_through(pair: Pair) -> None:
    mark = examine(pair)
    assert not mark.failed, mark.cause
    assert not (mark.wrong and pair.answer == "harmful"), f"a harmful pair was called {mark.kind}"


@pytest.mark.slow
def test_few_are_raised_without_need_left_open_or_not_named() -> None:
    marks = [examine(pair) for pair in TELLING]
    harmless = [mark for mark in marks if mark.pair.answer == "harmless"]
    harmful = [mark for mark in marks if mark.pair.answer == "harmful"]
    assert sum(mark.wrong for mark in harmless) <= 1, [mark.pair.name for mark in harmless if mark.wrong]
    assert sum(mark.inconclusive for mark in marks) * 20 <= len(marks)
    assert sum(not mark.named for mark in harmful) * 20 <= len(harmful)
