"""Python's garbage collector looks seldom during a sweep, and as before it elsewhere."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from sweeper.launchers.collector import collect_seldom, collecting_seldom


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


def collections() -> int:
    """How often it looks while 20,000 lists are made that last."""
    gc.collect()
    before = sum(generation["collections"] for generation in gc.get_stats())
    lasting: list[list[int]] = [[] for _ in range(20_000)]
    assert lasting
    return sum(generation["collections"] for generation in gc.get_stats()) - before


def test_what_lasts_is_not_looked_through_while_the_context_lasts(thresholds: tuple[int, int, int]) -> None:
    assert collections() > 0
    with collecting_seldom():
        assert collections() == 0
    assert gc.get_threshold() == thresholds
    assert collections() > 0


def test_it_is_as_before_where_a_worker_was_made_inside_too(thresholds: tuple[int, int, int]) -> None:
    with collecting_seldom():
        collect_seldom()
    assert gc.get_threshold() == thresholds


@pytest.mark.parametrize("young", [0, 10**9])
def test_who_lets_it_look_still_less_is_left_alone(young: int) -> None:
    gc.set_threshold(young, 10, 10)
    with collecting_seldom():
        assert gc.get_threshold()[0] == young
