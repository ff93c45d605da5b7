"""Pairs the cells of two sweeps by their axes: other environments give the same cells other ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

Axes = Mapping[str, object]
T = TypeVar("T")


class Sided(NamedTuple):
    """The axes of a cell, and of its reference."""

    cell: Axes
    reference: Axes


class Pair(NamedTuple, Generic[T]):
    """Two cells with the same axes; `label` has the values of axes that vary."""

    label: str
    old: T
    new: T


@dataclass(frozen=True, kw_only=True)
class Joined(Generic[T]):
    """What came of it.

    Attributes:
        pairs: in the order of the old sweep.
        only_old, only_new: labels of cells without a partner, with how many each side has.
        in_order: how many cells have equal axes with another of their own sweep; these were paired in order.
        axes_of_old, axes_of_new: axes that only one of the sweeps has; cells are paired by the others.
    """

    pairs: tuple[Pair[T], ...]
    only_old: Mapping[str, tuple[int, int]]
    only_new: Mapping[str, tuple[int, int]]
    in_order: int
    axes_of_old: tuple[str, ...]
    axes_of_new: tuple[str, ...]


def join(old: Sequence[tuple[T, Sided]], new: Sequence[tuple[T, Sided]]) -> Joined[T]:
    """Pairs cells of the same axes and the same reference axes."""
    sides = [_axes(cells) for cells in (old, new)]
    every = dict.fromkeys(axis for _, sided in (*old, *new) for axis in sided.cell)
    axes = [axis for axis in every if all(axis in side for side in sides)]
    varying = [axis for axis in axes if len({str(sided.cell[axis]) for _, sided in (*old, *new)}) > 1]
    groups = [_grouped(cells, axes) for cells in (old, new)]
    pairs: list[Pair[T]] = []
    without: tuple[dict[str, tuple[int, int]], dict[str, tuple[int, int]]] = ({}, {})
    in_order = 0
    for key in dict.fromkeys([*groups[0], *groups[1]]):
        first, second = (group.get(key, []) for group in groups)
        label = " ".join(str(dict(zip(axes, key, strict=False))[axis]) for axis in varying) or "its only cell"
        counts = len(first), len(second)
        if counts[0] != counts[1]:
            without[counts[0] < counts[1]][label] = counts
        elif len(first) > 1:
            in_order += len(first)
        pairs += [Pair(label, *pair) for pair in zip(first, second, strict=False)]
    return Joined(
        pairs=tuple(pairs),
        only_old=without[0],
        only_new=without[1],
        in_order=in_order,
        axes_of_old=tuple(sorted(sides[0] - sides[1])) if all(sides) else (),
        axes_of_new=tuple(sorted(sides[1] - sides[0])) if all(sides) else (),
    )


def _axes(cells: Sequence[tuple[T, Sided]]) -> set[str]:
    return {axis for _, sided in cells for axis in sided.cell}


def _grouped(cells: Sequence[tuple[T, Sided]], axes: Sequence[str]) -> dict[tuple[object, ...], list[T]]:
    groups = defaultdict(list)
    for cell, sided in cells:
        groups[tuple(side.get(axis) for side in sided for axis in axes)].append(cell)
    return groups
