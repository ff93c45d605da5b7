from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from sweeper.verdict.measured import Measured, OwnError, Replayed
from sweeper.verdict.rules import Kind, judge
from sweeper.verdict.thresholds import FLOAT64_EPS

COLLAPSED = Replayed(
    precision="float64", eps=FLOAT64_EPS, as_loaded=1e-15, asked=1e-15, policy=None, noise=1e-15, texts=(1e-15, 1e-15)
)
STAYS = replace(COLLAPSED, as_loaded=1e-5, asked=1e-5, texts=(0.0, 1e-5))
ROUNDED = Measured(identical=False, native=1e-2, floor=1e-2, floor_samples=4, replay=COLLAPSED)


def test_identical() -> None:
    assert judge(Measured(identical=True, native=0.0)).kind is Kind.IDENTICAL


def test_size_never_decides() -> None:
    assert judge(ROUNDED).kind is Kind.ROUNDING
    assert judge(replace(ROUNDED, native=1e-6, replay=STAYS)).kind is Kind.SEMANTIC


def test_policy_needs_that_putting_back_collapses() -> None:
    rounded = replace(ROUNDED, rounded=("inv_freq",), replay=replace(STAYS, policy=1e-16))
    assert judge(rounded).kind is Kind.POLICY
    assert "inv_freq" in judge(rounded).reason
    assert judge(replace(rounded, replay=replace(STAYS, policy=1e-6))).kind is Kind.SEMANTIC


def test_beyond_the_floor_is_inconclusive_unless_something_explains_it() -> None:
    beyond = replace(ROUNDED, native=1.0)
    assert judge(beyond).kind is Kind.INCONCLUSIVE
    assert judge(beyond).decides
    assert judge(replace(beyond, operations=0.5)).kind is Kind.ROUNDING
    assert judge(replace(beyond, operations=0.2)).kind is Kind.INCONCLUSIVE


def test_a_kernel_excuses_what_eager_attention_takes_away() -> None:
    beyond = replace(ROUNDED, native=1.0, kernel=1.5)
    assert judge(replace(beyond, native_eager=0.01)).kind is Kind.ROUNDING
    assert judge(replace(beyond, native_eager=1.0)).kind is Kind.INCONCLUSIVE
    assert judge(beyond).kind is Kind.INCONCLUSIVE
    assert judge(replace(beyond, kernel=2.5, native_eager=0.01)).kind is Kind.INCONCLUSIVE


def test_flipped_choices_excuse_what_the_reference_s_choices_take_away() -> None:
    beyond = replace(ROUNDED, native=1.0, flips=0.1, flipping=("gate",))
    assert judge(replace(beyond, native_chosen=0.01)).kind is Kind.ROUNDING
    assert judge(replace(beyond, native_chosen=1.0)).kind is Kind.INCONCLUSIVE
    assert "flips" in judge(beyond).reason  # in another layout the choices cannot be put back


OWN = OwnError(name="norm", own=0.25, floor=0.01, replayed=0.0, dtype="bfloat16")


@pytest.mark.parametrize("excuse", [{}, {"kernel": 1.0, "native_eager": 0.0}, {"flips": 0.1, "flipping": ("gate",)}])
def test_a_module_far_above_its_own_floor_is_no_rounding_whatever_the_outputs_say(excuse: dict[str, Any]) -> None:
    verdict = judge(replace(ROUNDED, native=1e-3, beyond=(OWN,), examined=7, **excuse))
    assert verdict.kind is Kind.SEMANTIC
    assert verdict.reason.startswith("norm lies 25 of its own floors up on the reference's input (bfloat16)")
    assert "examined = 7" in "\n".join(map(str, verdict.evidence))


def test_own_floors_are_counted_where_they_were_measured() -> None:
    assert OWN.floors == 25
    assert math.isnan(replace(OWN, floor=math.nan).floors)
    assert replace(OWN, floor=0.0).floors == math.inf
    assert replace(OWN, floor=0.0, own=0.0).floors == 0
    assert OWN.worse_than(replace(OWN, own=0.2))
    assert OWN.worse_than(replace(OWN, floor=math.nan, own=1.0))


def test_who_is_random_comes_before_all_else() -> None:
    left = Measured(identical=True, native=0.0)
    verdict = judge(replace(ROUNDED, random=("the reference is random: drop",), left=left))
    assert verdict.kind is Kind.SEMANTIC
    assert verdict.reason.startswith("the reference is random: drop; once it repeats, what is left is identical")
    assert any(evidence.name.startswith("once it repeats: ") for evidence in verdict.evidence)


def test_overflow_is_no_rounding() -> None:
    verdict = judge(replace(ROUNDED, native=math.nan, nonfinite=3))
    assert verdict.kind is Kind.SEMANTIC
    assert "range" in verdict.reason


@pytest.mark.parametrize("asked", [math.nan, None])
def test_without_a_replay_it_is_inconclusive(asked: float | None) -> None:
    replay = None if asked is None else replace(STAYS, asked=asked)
    assert judge(replace(ROUNDED, replay=replay, replay_error="RuntimeError: no")).kind is Kind.INCONCLUSIVE


def test_a_replay_that_stayed_in_float32_cannot_tell_small_differences() -> None:
    weak = replace(STAYS, asked=1e-8, eps=2.0**-23)
    verdict = judge(replace(ROUNDED, replay=weak))
    assert verdict.kind is Kind.INCONCLUSIVE
    assert "float64" in (verdict.decides or "")
    assert judge(replace(ROUNDED, replay=replace(weak, asked=1e-2))).kind is Kind.SEMANTIC


def test_the_evidence_names_a_leak_and_positions() -> None:
    replay = replace(STAYS, positions=(0.0, 1e-6, 1e-5))
    shown = "\n".join(map(str, judge(replace(ROUNDED, replay=replay)).evidence))
    assert "a leak between texts" in shown
    assert "replay rel_l2 by position = 0, 1e-06, 1e-05: " in shown
    assert "exact at position 0 and growing: positions or their table" in shown
    level = replace(STAYS, positions=(0.0, 1e-5, 1e-6))
    assert "growing" not in "\n".join(map(str, judge(replace(ROUNDED, replay=level)).evidence))
