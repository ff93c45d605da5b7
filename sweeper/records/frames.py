"""Sweeps as data frames, for a notebook: a row a cell, a row a module, a row a token."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.environment import needed
from sweeper.records.cell import CellRecord
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep

if TYPE_CHECKING:
    import pandas
    import pyarrow


class OpenedSweep:
    """Any number of sweeps, read when a frame is first asked for."""

    def __init__(self, sweeps: tuple[Sweep, ...]) -> None:
        self._sweeps = sweeps

    @functools.cached_property
    def cells(self) -> pandas.DataFrame:
        """A row a cell: ids, axes, verdict, figures as numbers (infinity and NaN too), columns as `cell_row` says."""
        pandas = needed("pandas", extra="frames", what="a data frame")
        return pandas.DataFrame([cell_row(sweep, record) for sweep in self._sweeps for record in sweep.records])

    @functools.cached_property
    def modules(self) -> pandas.DataFrame:
        """A row a module and cell: ids and axes of the cell, then the columns of `modules.parquet`."""
        return self._joined(Store.modules_table)

    @functools.cached_property
    def tokens(self) -> pandas.DataFrame:
        """A row a layer and token of the texts that moved most: ids and axes, then the columns of `tokens.parquet`."""
        return self._joined(Store.tokens_table)

    def _joined(self, table_of: Callable[[Store, str], pyarrow.Table | None]) -> pandas.DataFrame:
        """The tables of all cells that have one, below each other."""
        pandas = needed("pandas", extra="frames", what="a data frame")
        frames = []
        for sweep in self._sweeps:
            store = Store(sweep.folder)
            for record in sweep.records:
                table = table_of(store, record.cell_id)
                if table is None:
                    continue
                rows = table.to_pandas()
                known = _identified(sweep, record, taken=rows.columns)
                frames.append(pandas.concat([pandas.DataFrame([known] * len(rows)), rows], axis=1))
        filled = [frame for frame in frames if len(frame)]
        return pandas.concat(filled, ignore_index=True) if filled else pandas.DataFrame()

    def __repr__(self) -> str:
        folders = ", ".join(str(sweep.folder) for sweep in self._sweeps)
        return f"{sum(len(sweep.records) for sweep in self._sweeps)} cells of {folders}: .cells, .modules, .tokens"


def open_sweep(folder: str | Path, *more: str | Path) -> OpenedSweep:
    """Opens the folders of sweeps, `outputs/<grid>/<sweep>`, for a notebook.

    Raises:
        ConfigError: one of them is no sweep's folder.

    A cell whose files are not what was written is left out, with a warning that names the file.
    """
    sweeps = tuple(Sweep.read(Path(path)) for path in (folder, *more))
    for line in (line for sweep in sweeps for line in sweep.damaged):
        warnings.warn(line, stacklevel=2)
    return OpenedSweep(sweeps)


def cell_row(sweep: Sweep, record: CellRecord) -> dict[str, Any]:
    """One cell, flat: ids, axes, `reference_AXIS`, verdict, cause, `output_MEASURE`, `language_...`, `cost_...`.

    What was not measured is None. A figure keeps its name in `cell.json`, with what it is a figure of in front.
    """
    reference = {f"reference_{axis}": value for axis, value in record.reference_axes.items()}
    verdict = record.verdict
    cause = verdict.cause if verdict else None
    row: dict[str, Any] = {
        "status": record.status.value,
        "reason": record.reason,
        "verdict": verdict.kind if verdict else None,
        "verdict_reason": verdict.reason if verdict else None,
        "cause": cause.what if cause else None,
        "put_back": cause.put_back if cause else None,
        "first_divergence": record.first_divergence,
        "started_at": record.started_at,
        **reference,
    }
    for name in ("output", "language", "cost"):
        figures = getattr(record, name)
        row |= {f"{name}_{key}": value for key, value in vars(figures).items()} if figures else {}
    if record.state:
        row["state_differing"] = len(record.state.differing)
    row["embedding_cosine_min"] = min((text.embedding_cosine for text in record.texts), default=None)
    return _identified(sweep, record, taken=row) | row


def _identified(sweep: Sweep, record: CellRecord, taken: Any) -> dict[str, Any]:
    """Which cell a row speaks of: grid, sweep, id, and its axes; an axis whose name is taken becomes `axis_NAME`."""
    axes: Mapping[str, Any] = {f"axis_{axis}" if axis in taken else axis: value for axis, value in record.axes.items()}
    named = {"grid": sweep.description.grid, "sweep": sweep.description.sweep, "folder": str(sweep.folder)}
    return {**named, "cell_id": record.cell_id, "reference_id": record.reference_id, **axes}
