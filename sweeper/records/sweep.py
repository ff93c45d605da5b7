"""A sweep read back from its folder: everything that is shown of it is derived from this."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from sweeper.errors import ConfigError, DamagedError
from sweeper.records.cell import CellRecord, ModuleRecord, TokenFigures
from sweeper.records.schema import SCHEMA_VERSION
from sweeper.records.sharing import Shared
from sweeper.records.store import SWEEP_FILE, Store, read_document
from sweeper.records.sums import read_bytes

_ABOUT_THE_MACHINE = (
    *("output_dir=", "wandb.", "latency_repeats="),
    *("launcher=", "launcher.", "isolation=", "cell_timeout_s="),
)  # overrides that change no result


class PlannedIds(BaseModel):
    """One cell of the plan.

    Attributes:
        cell_id, reference_id: hashes; folders in `cells/` carry the first.
    """

    model_config = ConfigDict(frozen=True)

    cell_id: str
    reference_id: str


class SweepDescription(BaseModel):
    """`sweep.json`: what was asked for, and which cells that is. Written when the sweep starts, and once more at
    its end where another command began in the folder meanwhile.

    Attributes:
        grid, sweep: names of the two folders.
        config: the composed config, with `config_dirs` (what `--config-dir` named), `overrides` (the arguments of the
            command line), `params` and `exclude`.
        earlier: the configs of other commands that ran into the same folder, oldest first.
        cells: every cell of the plan, in the order in which they run; `cells/<cell_id>/` exists once one is finished.
            Behind them what earlier commands left in the folder.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int = SCHEMA_VERSION
    grid: str
    sweep: str
    config: dict[str, Any]
    earlier: tuple[dict[str, Any], ...] = ()
    cells: tuple[PlannedIds, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep as far as it got.

    Attributes:
        folder: `outputs/<grid>/<sweep>`.
        description: `sweep.json`.
        records: of the cells that have one, in the order of the plan.
        damaged: a line a cell whose files are not what was written: it is not among the records.
    """

    folder: Path
    description: SweepDescription
    records: tuple[CellRecord, ...]
    damaged: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> Sweep:
        """Reads `sweep.json` and the files of every cell.

        Raises:
            ConfigError: `folder` is not the folder of a sweep.
            DamagedError: its sweep.json cannot be read.
        """
        try:
            description = read_description(folder)
        except DamagedError as error:
            raise DamagedError(f"{error}; the sweep's command, typed again, writes it anew") from None
        store, shared, records, damaged = Store(folder), Shared(), [], []
        for pair in description.cells:
            try:
                record = store.read(pair.cell_id)
            except DamagedError as error:
                damaged.append(f"{error}; left out, the same command runs this cell again")
            else:
                records += [shared.record(record)] if record is not None else []
        return cls(folder, description, tuple(records), tuple(damaged))

    @property
    def command(self) -> str:
        """The commands that made it, a line each, without the overrides that only say where results go."""
        return "\n".join(map(self._command, (*self.description.earlier, self.description.config)))

    @staticmethod
    def _command(config: dict[str, Any]) -> str:
        folders = [word for folder in config.get("config_dirs", []) for word in ("--config-dir", folder)]
        overrides = [word for word in config.get("overrides", []) if not word.startswith(_ABOUT_THE_MACHINE)]
        return shlex.join(["python", "-m", "sweeper", *folders, *overrides])

    @cached_property
    def varying(self) -> list[str]:
        """The axes that tell its cells apart: `varying_axes`."""
        return varying_axes([record.axes for record in self.records])

    def modules(self, cell_id: str) -> list[ModuleRecord]:
        """Every module of a cell in order of execution; none if the cell did not get that far."""
        return Store(self.folder).modules(cell_id)

    def failure(self, cell_id: str) -> CellRecord | None:
        """The attempt that failed after the cell was measured: `Store.failure`."""
        return Store(self.folder).failure(cell_id)

    def tokens(self, cell_id: str) -> dict[str, TokenFigures]:
        """The figures by token of a cell's layers, by name; empty where it has none."""
        return Store(self.folder).tokens(cell_id)

    def find(self, prefix: str) -> CellRecord:
        """The one finished cell whose id starts with `prefix`.

        Raises:
            ConfigError: no cell does, or several; the message lists the ids.
        """
        matching = [record for record in self.records if record.cell_id.startswith(prefix)]
        if len(matching) == 1:
            return matching[0]
        problem = "several cells start so" if matching else "no such cell"
        named = [f"{record.cell_id}: {short_label(record.axes, self.varying)}" for record in matching or self.records]
        listed = "; ".join([*named, *self.damaged])
        raise ConfigError(f"{prefix}: {problem}. Give one of: {listed or 'none is finished'}")


def read_description(folder: Path, missing: type[ConfigError] = ConfigError) -> SweepDescription:
    """`sweep.json` of a sweep.

    Args:
        folder: the sweep's.
        missing: what a folder without it is; `DamagedError` where it is known to be a sweep's.

    Raises:
        ConfigError: `folder` is not the folder of a sweep.
        DamagedError: the file cannot be read.
    """
    path = folder / SWEEP_FILE
    if missing is ConfigError and not os.path.lexists(path):
        raise ConfigError(_no_sweep(folder))
    return read_document(path, read_bytes(path), SweepDescription)


def varying_axes(axes: Sequence[dict[str, str | bool]]) -> list[str]:
    """The axes that do not hold one value in all cells; of a single cell, those that name it best."""
    if len(axes) < 2:
        return ["checkpoint", "load_strategy", "dtype", "attention", "layout"]
    return [axis for axis in axes[0] if len({row[axis] for row in axes}) > 1]


def short_label(axes: dict[str, str | bool], varying: Sequence[str]) -> str:
    """The values that tell a cell from the others: `bfloat16 sdpa use_cache=True`."""
    return " ".join(f"{axis}={axes[axis]}" if isinstance(axes[axis], bool) else str(axes[axis]) for axis in varying)


def short_ids(cell_ids: Sequence[str], shortest: int = 4) -> dict[str, str]:
    """Cell id -> the shortest prefix, the same length for all, that names one cell only."""
    length = shortest
    while len({cell_id[:length] for cell_id in cell_ids}) < len(set(cell_ids)):
        length += 1
    return {cell_id: cell_id[:length] for cell_id in cell_ids}


def _no_sweep(folder: Path) -> str:
    inside = sorted(str(path.parent) for path in folder.glob(f"*/{SWEEP_FILE}"))
    inside = inside or sorted(str(path.parent) for path in folder.glob(f"*/*/{SWEEP_FILE}"))
    hint = (
        f"did you mean {' or '.join(inside[:5])}?" if inside else "give outputs/<grid>/<sweep>: a sweep names it last"
    )
    return f"{folder}: no {SWEEP_FILE} in it; {hint}"
