"""What report 2's answer proposes to change, as data: `report_2_fixups.yaml`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict

from sweeper.config import parse
from sweeper.published.publication import Axes

REPORT_2_FIXUPS = Path(__file__).parent / "report_2_fixups.yaml"


class Fixup(BaseModel):
    """Something that the answer proposes to change, or to look at instead.

    Attributes:
        id: names it in tables.
        section, snippet: where the text proposes it; both empty for what it does not propose.
        cell, reference: the axes that it changes on either side.
        look_at: the whole output, or the pooled and normalised embeddings; the other two no cell shows: see
            `case_studies.measure_fixups`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    section: str = ""
    snippet: str = ""
    cell: Axes = {}
    reference: Axes = {}
    look_at: Literal["output", "embeddings", "eval_mode", "aligned_slices"] = "output"


class Fixups(BaseModel):
    """The two cells that the report compares, and what is meant to close their difference.

    Attributes:
        cell, reference: the axes of both.
        fixups: what the answer proposes, in the order of the text, then what it does not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    cell: Axes
    reference: Axes
    fixups: tuple[Fixup, ...]


def load_fixups(path: Path = REPORT_2_FIXUPS) -> Fixups:
    """Reads the file.

    Raises:
        ConfigError: it holds something else; one line with the place and what is wrong.
    """
    data: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    fixups: Fixups = parse(Fixups, data, where=path.stem)
    return fixups
