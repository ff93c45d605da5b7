"""What differs between the environments of two sweeps, whatever it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sweeper.records.cell import CellRecord


class EnvironmentChange(NamedTuple):
    """One thing that is not the same: its name, and the values of each sweep; None: it is not known there."""

    name: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.name} {_shown(self.old)} -> {_shown(self.new)}"


def environment_changes(old: Sequence[CellRecord], new: Sequence[CellRecord]) -> list[EnvironmentChange]:
    """Every entry of the records' environments that differs, and weights that are others behind one name."""
    sides = [_environment(records) for records in (old, new)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    pairs = ((name, sides[0].get(name), sides[1].get(name)) for name in names)
    return [EnvironmentChange(*pair) for pair in pairs if pair[1] != pair[2]]


def _environment(records: Sequence[CellRecord]) -> dict[str, Any]:
    """The values of every name: one, or several where a sweep ran on several machines."""
    found: dict[str, dict[str, Any]] = {}
    for record in records:
        known = dict(record.environment)
        if record.checkpoint_revision is not None:
            known[f"weights of {record.axes['checkpoint']}"] = record.checkpoint_revision
        for name, value in known.items():
            found.setdefault(name, {})[str(value)] = value
    return {name: next(iter(values.values())) if len(values) == 1 else sorted(values) for name, values in found.items()}


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = " and ".join(value) if isinstance(value, list) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
