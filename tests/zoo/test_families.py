"""The verdict on a telling part of the pairs of many families; `python -m tests.zoo.table` examines all of them."""

from __future__ import annotations

import pytest

from tests.zoo import language, others
from tests.zoo.each_pair import each_pair
from tests.zoo.examine import examine, missing_packages
from tests.zoo.halves import HALVES
from tests.zoo.pairs import HARMLESS, STATE, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

# Every fifth pair of each half: the pairs of a kind stand together, so that nearly every kind is there.
TELLING = [
    pair
    for half in (language.TUNING, language.HELD_OUT, others.TUNING, others.HELD_OUT)
    for pair in half[::5]
    if not missing_packages(pair)
]


def test_the_zoo_is_large_and_a_third_of_it_is_harmless() -> None:
    pairs = [pair for half in HALVES.values() for pair in half]
    assert len({pair.name for pair in pairs}) >= 240
    assert sum(pair.answer == "harmless" for pair in pairs) * 3 >= len(pairs)


@each_pair([pair for half in HALVES.values() for pair in half])
def test_a_pair_states_its_answer(pair: Pair) -> None:
    assert pair.allowed <= (HARMLESS if pair.answer == "harmless" else STATE)
    assert bool(pair.cause) == (pair.answer == "harmful")
    assert all(word == word.lower() for word in pair.cause)


@pytest.mark.slow
@each_pair(TELLING)
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
