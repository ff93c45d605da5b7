"""Python's garbage collector looks seldom during a sweep, and as before it elsewhere."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from sweeper.launchers.collector import collect_seldom, collecting_seldom


@pytest.fixture(autouse=True)
def thresholds() -> Iterator[tuple[int, int, int]]:
    before = gc.get_threshold()
    yield before
    gc.set_threshold(*before)


class Node:
    """In a circle with a list."""

    def __init__(self, around: list[object]) -> None:
        around.append(self)


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


def test_what_was_made_is_not_looked_through_when_the_context_ends_but_once_it_is_old() -> None:
    gc.collect()
    with collecting_seldom():
        lasting: list[object] = [[] for _ in range(20_000)]
        lasting.append(lasting)
        place = weakref.ref(Node(lasting))
        del lasting
    assert gc.get_count()[0] < 1_000
    assert gc.get_freeze_count() == 0
    assert place() is not None
    gc.collect()
    assert place() is None


@pytest.mark.parametrize("young", [0, 10**9])
def test_who_lets_it_look_still_less_is_left_alone(young: int) -> None:
    gc.set_threshold(young, 10, 10)
    with collecting_seldom():
        assert gc.get_threshold()[0] == young
