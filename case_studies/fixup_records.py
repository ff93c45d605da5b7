"""`fixups.json`: what `case_studies.measure_fixups` measured. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sweeper.records.cell import PairMeasures

FIXUPS_FILE = "fixups.json"


class FixupRecord(BaseModel):
    """One fix-up on one cell: the output against the reference's without it, and with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    fixup: str
    without: PairMeasures
    with_it: PairMeasures


class FixupsRecord(BaseModel):
    """`fixups.json`: one cell of a sweep."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell_id: str
    fixups: tuple[FixupRecord, ...]

    @classmethod
    def read(cls, path: Path) -> FixupsRecord | None:
        """Reads the file; None where nothing was measured."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None
