"""The zoo is what it says it is, and the verdict passes its examination."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.zoo import held_out, tuning
from tests.zoo.check import differences
from tests.zoo.each_pair import each_pair
from tests.zoo.examine import examine
from tests.zoo.pairs import IDENTICAL, Pair, split

pytestmark = pytest.mark.usefixtures("one_thread")

PAIRS = tuning.PAIRS + held_out.PAIRS
HALVES = pytest.mark.parametrize("pairs", [tuning.PAIRS, held_out.PAIRS], ids=["tuning", "held_out"])


@pytest.fixture
def verdict() -> None:
    pytest.importorskip("sweeper.verdict.comparison")


def test_the_halves_are_those_that_were_drawn() -> None:
    drawn = split(pair.name for pair in PAIRS)
    assert ({pair.name for pair in tuning.PAIRS}, {pair.name for pair in held_out.PAIRS}) == drawn
    assert len(PAIRS) == len(drawn[0]) + len(drawn[1]) >= 36


def test_both_halves_hold_every_kind_equally_often() -> None:
    assert Counter(pair.kind for pair in tuning.PAIRS) == Counter(pair.kind for pair in held_out.PAIRS)


@HALVES
def test_a_half_holds_every_dtype_and_model(pairs: list[Pair]) -> None:
    models_and_dtypes = {word for pair in pairs for word in pair.name.partition("/")[2].split("_")}
    assert models_and_dtypes >= {"llama", "qwen3", "bert", "float32", "bfloat16", "float16"}


@each_pair(PAIRS)
def test_plain_differences_agree_with_the_answer(pair: Pair) -> None:
    """Harmless pairs are one function in float64; harmful ones are not, and show it in their own dtype as well."""
    models = pair.build()
    assert str(next(models.candidate.parameters()).dtype) == f"torch.{pair.dtype}"
    native, replayed = differences(models)
    if pair.allowed == IDENTICAL:
        assert native == 0
    if pair.answer == "harmless":
        assert replayed < 1e-9
    else:
        assert native > 0
        assert replayed > 1e-6


@pytest.mark.slow
@pytest.mark.usefixtures("verdict")
@each_pair(PAIRS)
def test_the_verdict_is_not_wrong(pair: Pair) -> None:
    mark = examine(pair)
    assert not mark.wrong, f"a {pair.answer} pair was called {mark.kind}"


@pytest.mark.slow
@pytest.mark.usefixtures("verdict")
@HALVES
def test_few_verdicts_are_inconclusive(pairs: list[Pair]) -> None:
    inconclusive = [pair.name for pair in pairs if examine(pair).inconclusive]
    assert len(inconclusive) * 10 < len(pairs), inconclusive


@pytest.mark.slow
@pytest.mark.usefixtures("verdict")
@HALVES
def test_nearly_every_cause_is_named(pairs: list[Pair]) -> None:
    harmful = [pair for pair in pairs if pair.answer == "harmful"]
    unnamed = {pair.name: examine(pair).cause for pair in harmful if not examine(pair).named}
    assert len(unnamed) * 10 <= len(harmful), unnamed
