"""The other pairs are what they say they are; the verdict is examined elsewhere."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch

from tests.zoo.check import leaf_differences, replayed_leaves
from tests.zoo.each_pair import each_pair
from tests.zoo.others import HELD_OUT, PAIRS, TUNING
from tests.zoo.pairs import IDENTICAL, Pair

pytestmark = pytest.mark.usefixtures("one_thread")

# State that was computed from state and stored: one function up to the rounding of what is stored.
STORED = {"batch_norm_folded", "weight_norm_folded", "lora"}
# Not replayed in float64: int8 is int8, and what was compiled, traced or wrapped has other names or fixed dtypes.
NOT_REPLAYED = {"quantised", "compiled", "traced", "wrapped", "offloaded"}
# Only the dtype that they compute in makes them differ, so that a replay in float64 agrees.
NARROW = {"narrow", "overflow"}


def test_the_halves_hold_every_kind_equally_often() -> None:
    assert Counter(pair.kind for pair in TUNING) == Counter(pair.kind for pair in HELD_OUT)
    assert len({pair.name for pair in PAIRS}) == len(TUNING) + len(HELD_OUT) == len(PAIRS) >= 70


@pytest.mark.parametrize("pairs", [TUNING, HELD_OUT], ids=["tuning", "held_out"])
def test_a_third_of_a_half_is_harmless(pairs: list[Pair]) -> None:
    assert 0.25 < sum(pair.answer == "harmless" for pair in pairs) / len(pairs) < 0.4
    assert {pair.dtype for pair in pairs} == {"float32", "bfloat16", "float16"}


@each_pair(PAIRS)
def test_plain_differences_agree_with_the_answer(pair: Pair) -> None:
    """Harmless pairs are one function; harmful ones differ in some leaf of their output."""
    for package in pair.needs:
        pytest.importorskip(package)
    random.seed(0)
    torch.manual_seed(0)
    models = pair.build()
    dtype = getattr(torch, pair.dtype)
    assert {parameter.dtype for parameter in models.candidate.parameters()} <= {dtype, torch.int8}
    native = max(leaf_differences(models).values())
    if pair.allowed == IDENTICAL:
        assert native == 0
    if pair.answer == "harmful":
        assert native > 0
    elif pair.kind in NOT_REPLAYED:
        assert native < (0.05 if pair.kind == "quantised" else 4 * torch.finfo(dtype).eps)
    else:
        replayed = max(replayed_leaves(models).values())
        assert replayed < (torch.finfo(dtype).eps if pair.kind in STORED else 1e-9)
    if pair.kind in NARROW and not math.isinf(native):
        assert native > 4 * torch.finfo(dtype).eps
