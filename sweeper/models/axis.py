"""What an axis of a cell is, and what a switch: one global setting around a side's forwards. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, get_args

from sweeper.config import Cell, label

Part = Callable[[Cell], Hashable]
Key = Literal["weights", "code", "conditions", "function"]


def nothing(_cell: Cell) -> None:
    """An axis' part in a key that it does not decide."""


@dataclass(frozen=True)
class Switch:
    """One global setting around a side's calls: a flag, a pinned kernel, autocast.

    Attributes:
        value: as a sentence names it; where both sides have the same, nothing is there to put back.
        fix: what a user types to have it so.
        context: makes the context that sets it, and puts back what it found.
        rounds: it only decides how results are rounded, and the float64 replay does without it. Any other setting
            belongs to the function that the side computes, and stays.
        begin: what a run does once, before its first call; not again where it goes on after the other side's turn.
        halfway: other values on the way to having none, the nearest to it last: where one of them closes a difference,
            it names the part of this one that makes it.
    """

    value: str
    fix: str
    context: Callable[[], AbstractContextManager[Any]]
    rounds: bool = False
    begin: Callable[[], None] | None = None
    halfway: tuple[Switch, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a cell.

    A key says what two cells share. An axis takes part in each with its own value unless its entry says what else it
    takes part with, so that one that is forgotten makes cells share less, never more.

    Attributes:
        name: key on the command line, in config files and in records.
        help: what it decides, in a line.
        kind: what a value is validated as: an enum, a `Literal`, `bool`, or a model of pydantic. Must be hashable.
        default: value where nobody gives one. That of an axis of the package stands in `conf/config.yaml`, as here.
        group: what is typed is the name of a config file in `conf/<name>`, and its settings have dotted keys.
        typed: words that stand for a value that this machine decides, and how it is found out.
        aliases: words that are no values, and which is meant by each.
        weights: what decides the weights in memory. Cells that differ in it have a model each.
        code: what decides which code runs, flags apart. Cells that differ in it learn nothing from each other.
        conditions: what decides the settings around a forward. Sides that differ in it each run under their own.
        function: what decides which function of its state a cell computes, rounding apart. Cells that agree in it, in
            their state and in their calls give the same bits in a float64 replay.
        around: makes the context around every forward of a cell: the axis' one switch.
        switches: in place of `around`, the switches by name, where an axis has several or names them otherwise; all
            cells have the same names. Each is put back alone to find a cause.
        forms_calls: it decides how texts become calls of the model, and nothing else: it is put back alone, by forming
            the calls under the reference's value.
        halfway: of such an axis, value -> others on the way to the default, as `Switch.halfway`.
        without_effect: setting -> why it does nothing here. Asked after the cell's forwards, in its conditions.
        unsupported: why the cell cannot run, and what would; None where nothing stands in the way.
        needs: distributions without which the cell cannot run.
        packages: distributions whose version can change the cell's result, besides those that it needs and those that
            every cell runs on: they are part of its id.
    """

    name: str
    help: str
    kind: Any
    default: Any
    group: bool = False
    typed: Mapping[str, Callable[[], Any]] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)
    weights: Part | None = None
    code: Part | None = None
    conditions: Part | None = None
    function: Part | None = None
    around: Callable[[Cell], AbstractContextManager[Any]] | None = None
    switches: Callable[[Cell], Mapping[str, Switch]] | None = None
    forms_calls: bool = False
    halfway: Mapping[Any, tuple[Any, ...]] = field(default_factory=dict)
    without_effect: Callable[[Cell], Mapping[str, str]] | None = None
    unsupported: Callable[[Cell], str | None] = nothing
    needs: Callable[[Cell], tuple[str, ...]] | None = None
    packages: Callable[[Cell], tuple[str, ...]] | None = None

    def words(self) -> tuple[str, ...]:
        """What can be typed, where that is a list: not for groups."""
        if self.kind is bool:
            allowed: tuple[str, ...] = ("true", "false")
        elif isinstance(self.kind, type) and issubclass(self.kind, StrEnum):
            allowed = tuple(member.value for member in self.kind)
        else:
            allowed = tuple(map(typed, get_args(self.kind)))
        return (*self.typed, *allowed)

    def part(self, key: Key, cell: Cell) -> Hashable:
        """What the axis takes part in a key with."""
        part: Part | None = getattr(self, key)
        return getattr(cell, self.name) if part is None else part(cell)

    def switches_of(self, cell: Cell) -> Mapping[str, Switch]:
        """What the axis puts around the cell's forwards, by name."""
        if self.switches is not None:
            return self.switches(cell)
        if self.around is None:
            return {}
        around, word = self.around, typed(label(getattr(cell, self.name)))
        return {self.name: Switch(word, f"{self.name}={word}", lambda: around(cell))}


def typed(value: Any) -> str:
    """A value as YAML and the command line have it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
