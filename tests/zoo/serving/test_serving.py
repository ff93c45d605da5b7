"""The pairs of batches, caches and compilers are what they say they are, and the verdict is right on a part of them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from tests.zoo.check import outputs, relative_difference
from tests.zoo.each_pair import each_pair
from tests.zoo.examine import examine
from tests.zoo.pairs import Pair
from tests.zoo.serving import HELD_OUT, PAIRS, TUNING

pytestmark = pytest.mark.usefixtures("one_thread")

# A C++ compiler takes 20 to 40 s for each of inductor's; `tests/sweep/test_compile.py` judges one cell of it.
QUICK = [
    pair
    for half in (TUNING, HELD_OUT)
    for pair in half
    if pair.kind not in ("compile_inductor", "compile_precise_casts")
]
# Every fourth pair of each half: the pairs of a kind stand together, so that most kinds are there.
TELLING = QUICK[::4]


def test_the_halves_hold_every_kind_equally_often() -> None:
    assert Counter(pair.kind for pair in TUNING) == Counter(pair.kind for pair in HELD_OUT)
    assert len({pair.name for pair in PAIRS}) == len(TUNING) + len(HELD_OUT) == len(PAIRS)


@pytest.mark.parametrize("axis", ["batch", "decode", "compile"])
@pytest.mark.parametrize("answer", ["harmless", "harmful"])
def test_each_axis_has_eight_of_either(axis: str, answer: str) -> None:
    assert sum(pair.kind.startswith(axis) and pair.answer == answer for pair in PAIRS) >= 8


@pytest.mark.slow
@each_pair(QUICK)
def test_plain_differences_agree_with_the_answer(pair: Pair) -> None:
    """Harmless pairs differ by as many last places as a few layers make; harmful ones by much more."""
    difference = relative_difference(*outputs(pair.build()))
    eps = torch.finfo(getattr(torch, pair.dtype)).eps
    assert difference > 0 if pair.answer == "harmful" else difference < 16 * eps, difference


@pytest.mark.slow
@each_pair(TELLING)
def test_the_verdict_is_not_wrong(pair: Pair) -> None:
    mark = examine(pair)
    assert not mark.failed, mark.cause
    assert not mark.wrong, f"a {pair.answer} pair was called {mark.kind}"


@pytest.mark.slow
def test_few_are_left_open_or_not_named() -> None:
    marks = [examine(pair) for pair in TELLING]
    harmful = [mark for mark in marks if mark.pair.answer == "harmful"]
    assert sum(mark.inconclusive for mark in marks) * 20 <= len(marks)
    assert sum(not mark.named for mark in harmful) * 20 <= len(harmful)
