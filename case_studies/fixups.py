"""What report 2's answer proposes to change: as data, `report_2_fixups.yaml`, and as measured, `fixups.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

from sweeper.config import parse
from sweeper.published.publication import Axes
from sweeper.records.cell import PairMeasures

REPORT_2_FIXUPS = Path(__file__).parent / "report_2_fixups.yaml"
FIXUPS_FILE = "fixups.json"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Fixup(_Record):
    """Something that the answer proposes to change, or to look at instead.

    Attributes:
        id: names it in tables.
        section, snippet: where the text proposes it; both empty for what it does not propose.
        cell, reference: the axes that it changes on either side.
        look_at: the whole output, or the pooled and normalised embeddings; the other two no cell shows: see
            `case_studies.measure_fixups`.
    """

    id: str
    section: str = ""
    snippet: str = ""
    cell: Axes = {}
    reference: Axes = {}
    look_at: Literal["output", "embeddings", "eval_mode", "aligned_slices"] = "output"


class Fixups(_Record):
    """The two cells that the report compares, and what is meant to close their difference.

    Attributes:
        cell, reference: the axes of both.
        fixups: what the answer proposes, in the order of the text, then what it does not.
    """

    cell: Axes
    reference: Axes
    fixups: tuple[Fixup, ...]


def load_fixups() -> Fixups:
    """Reads the file."""
    data: Any = OmegaConf.to_container(OmegaConf.load(REPORT_2_FIXUPS), resolve=True)
    fixups: Fixups = parse(Fixups, data, where=REPORT_2_FIXUPS.stem)
    return fixups


class FixupRecord(_Record):
    """One fix-up on one cell: the output against the reference's without it, and with it."""

    fixup: str
    without: PairMeasures
    with_it: PairMeasures


class FixupsRecord(_Record):
    """`fixups.json`: one cell of a sweep."""

    cell_id: str
    fixups: tuple[FixupRecord, ...]

    @classmethod
    def read(cls, path: Path) -> FixupsRecord | None:
        """Reads the file; None where nothing was measured."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None
