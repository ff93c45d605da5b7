"""A finished cell is a directory that appears by rename: whole or not at all. Everything else is derived from these."""

from __future__ import annotations

import functools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from pydantic import TypeAdapter

from sweeper.records.cell import SCHEMA_VERSION, CellRecord, ExplanationRecord, ModuleRecord, PairMeasures, Status

if TYPE_CHECKING:
    import pyarrow

CELL_FILE = "cell.json"
MODULES_FILE = "modules.parquet"
SWEEP_FILE = "sweep.json"
EXPLAIN_FOLDER = "explain"
PAGE_FILE = "index.html"

_MODULES = TypeAdapter(list[ModuleRecord])


class Store:
    """The folder of one sweep: `sweep.json`, `cells/<cell_id>/{cell.json,modules.parquet}`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells_folder = folder / "cells"

    def open(self, description: dict[str, Any]) -> None:
        """Makes the folder and writes `sweep.json`; half-written cells of a killed run are removed."""
        self.cells_folder.mkdir(parents=True, exist_ok=True)
        for leftover in self.cells_folder.glob(".tmp-*"):
            import psutil  # only where a run was killed

            if not psutil.pid_exists(int(leftover.name.split("-")[1])):
                shutil.rmtree(leftover, ignore_errors=True)
        write_whole(self.folder / SWEEP_FILE, json.dumps(description, indent=2, default=str) + "\n")

    def finished(self, cell_id: str, *, judged: bool | Literal["full"] = False) -> CellRecord | None:
        """The record of a cell that need not run again, or None. A failed cell runs again.

        Args:
            cell_id: which cell.
            judged: a cell that was measured without a verdict runs again too; `full`: or without all evidence.
        """
        record = self.read(cell_id)
        if record is None or record.status is Status.FAILED:
            return None
        lacks = record.verdict is None or (judged == "full" and not record.verdict.complete)
        return None if judged and record.status is Status.OK and lacks else record

    def read(self, cell_id: str) -> CellRecord | None:
        path = self.cells_folder / cell_id / CELL_FILE
        return CellRecord.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None

    def write(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> Path:
        """Writes a cell in a folder beside its place, then renames it. A failed or less complete attempt makes way."""
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{os.getpid()}-", dir=self.cells_folder))
        try:
            temporary.chmod(0o755)
            _write_durably(temporary / CELL_FILE, record.model_dump_json(indent=2).encode() + b"\n")
            _write_modules(temporary / MODULES_FILE, modules)
            return self._put_in_place(temporary, record)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def adopt(self, other: Store, record: CellRecord) -> Path:
        """Copies a finished cell of another sweep."""
        temporary = Path(tempfile.mkdtemp(prefix=f".tmp-{os.getpid()}-", dir=self.cells_folder))
        try:
            shutil.copytree(other.cells_folder / record.cell_id, temporary, dirs_exist_ok=True)
            return self._put_in_place(temporary, record)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _put_in_place(self, temporary: Path, record: CellRecord) -> Path:
        final = self.cells_folder / record.cell_id
        verdict = record.verdict
        if self.finished(record.cell_id, judged="full" if verdict and verdict.complete else verdict is not None):
            return final  # another process was first; its cell has the same choices and environment
        if final.exists():
            aside = temporary.with_name(f"{temporary.name}-replaced")
            final.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
        temporary.rename(final)
        return final

    def write_explanation(self, explanation: ExplanationRecord) -> Path:
        """Writes `explain/<cell_id>.json`, whole or not at all; a newer one takes the place of an older."""
        path = self.folder / EXPLAIN_FOLDER / f"{explanation.cell_id}.json"
        path.parent.mkdir(exist_ok=True)
        write_whole(path, explanation.model_dump_json(indent=2) + "\n")
        return path

    def records(self) -> list[CellRecord]:
        """Every cell that lies here, in the order of the cells' ids."""
        found = (self.read(path.parent.name) for path in sorted(self.cells_folder.glob(f"*/{CELL_FILE}")))
        return [record for record in found if record is not None]

    def modules(self, cell_id: str) -> list[ModuleRecord]:
        """Every module of a cell in order of execution; none if the cell did not get that far."""
        import pyarrow.parquet

        rows = pyarrow.parquet.ParquetFile(self.cells_folder / cell_id / MODULES_FILE).read().to_pylist()
        for row in rows:
            row["measures"] = {name: row.pop(name) for name in PairMeasures.model_fields}
        return _MODULES.validate_python(rows)


def write_whole(path: Path, text: str) -> None:
    """Writes a file that appears by rename, whole or not at all; it takes the place of an older one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    _write_durably(temporary, text.encode())
    temporary.replace(path)


def module_rows(modules: Sequence[ModuleRecord]) -> list[dict[str, Any]]:
    """One flat dict a module: the fields of `ModuleRecord`, then those of its measures."""
    rows = [{**vars(module), **vars(module.measures)} for module in modules]
    for row in rows:
        del row["measures"]
    return rows


@functools.cache
def modules_schema() -> pyarrow.Schema:
    """The columns of `modules.parquet`, derived from the records, so that the two cannot drift apart."""
    import pyarrow

    arrow = {int: "int64", float: "double", str: "string", bool: "bool"}
    columns = []
    for name, field in {**ModuleRecord.model_fields, **PairMeasures.model_fields}.items():
        if name != "measures":
            plain, *optional = get_args(field.annotation) or (field.annotation,)
            columns.append(pyarrow.field(name, arrow[plain], nullable=bool(optional)))
    return pyarrow.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION)})


def _write_modules(path: Path, modules: Sequence[ModuleRecord]) -> None:
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist(module_rows(modules), schema=modules_schema())
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    _write_durably(path, sink.getvalue())


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
