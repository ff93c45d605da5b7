"""Thousands of records in memory: what they have in common is held once."""

from __future__ import annotations

import hashlib
from typing import Any, TypeVar

from pydantic_core import to_json

from sweeper.records.cell import CellRecord

_Value = TypeVar("_Value")
_WHOLE = (  # cells of the same bits have the same figures
    *("environment", "reference_choices", "reference_axes", "reference_sample", "state", "reading", "without_effect"),
    *("output", "language", "texts", "sample", "unaligned"),
)
_BY_ENTRY = ("axes", "choices")  # each cell has its own, of values that many have


class Shared:
    """Gives equal parts of records as one object. Cells of a sweep differ in little but their figures."""

    def __init__(self) -> None:
        self._held: dict[bytes, Any] = {}

    def record(self, record: CellRecord) -> CellRecord:
        """The same record, its parts shared with those of the records before it."""
        parts: dict[str, Any] = {name: self._one(getattr(record, name)) for name in _WHOLE}
        for name in _BY_ENTRY:
            parts[name] = {self._one(key): self._one(value) for key, value in getattr(record, name).items()}
        verdict = record.verdict
        if verdict is not None:
            evidence = tuple(map(self._one, verdict.evidence))
            parts["verdict"] = verdict.model_copy(update={"evidence": evidence, "cause": self._one(verdict.cause)})
        return record.model_copy(update=parts)

    def _one(self, value: _Value) -> _Value:
        text = type(value).__name__.encode() + to_json(value)  # as exact as a repr, in a third of its time
        found: _Value = self._held.setdefault(hashlib.blake2b(text, digest_size=16).digest(), value)
        return found


class SharedRecords(dict[str, CellRecord]):
    """Cell id -> record, their equal parts held once."""

    def __init__(self) -> None:
        super().__init__()
        self._shared = Shared()

    def add(self, record: CellRecord) -> None:
        """Adds a record under its cell's id, or puts it in the place of an earlier one."""
        self[record.cell_id] = self._shared.record(record)
