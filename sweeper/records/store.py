"""A finished cell is a directory that appears by rename: whole or not at all. Everything else is derived from these."""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError, field_validator

from sweeper.errors import DamagedError
from sweeper.records.cell import CellRecord, ModuleRecord, PairMeasures, Status, TokenFigures
from sweeper.records.schema import SCHEMA_VERSION
from sweeper.records.sums import SUMS_FILE, names_in, read_bytes, read_checked, sums_of
from sweeper.records.temporary import remove_abandoned, temporary_prefix
from sweeper.records.tokens import TOKENS_FILE, tokens_by_layer, tokens_table
from sweeper.records.verdict import ExplanationRecord

if TYPE_CHECKING:
    import pyarrow

CELL_FILE = "cell.json"
MODULES_FILE = "modules.parquet"
SWEEP_FILE = "sweep.json"
EXPLAIN_FOLDER = "explain"
FAILED_FOLDER = "failed"
RECORDINGS_FOLDER, RECORDING_SUFFIX = "recordings", ".safetensors"
PAGE_FILE = "index.html"
CELLS_FOLDER = "cells"
_WRITTEN_INTO = (CELLS_FOLDER, EXPLAIN_FOLDER, FAILED_FOLDER, RECORDINGS_FOLDER)

_MODULES = TypeAdapter(list[ModuleRecord])
_Document = TypeVar("_Document", bound=BaseModel)


class _Versioned(BaseModel):
    """What every document says of itself, looked at before the rest, which a newer version may have changed."""

    schema_version: int

    @field_validator("schema_version")
    @classmethod
    def _is_known(cls, version: int) -> int:
        if version > SCHEMA_VERSION:
            raise ValueError(f"{version} is of a newer sweeper; this one reads versions up to {SCHEMA_VERSION}")
        return version


class Store:
    """The folder of one sweep: `sweep.json`, `cells/<cell_id>/{cell.json,*.parquet,SHA256SUMS}`.

    Args:
        recorded: a cell without a recording beside it (docs/recordings.md) runs again.
    """

    def __init__(self, folder: Path, *, recorded: bool = False) -> None:
        self.folder = folder
        self._recorded = recorded
        self.cells_folder = folder / CELLS_FOLDER

    def open(self, description: dict[str, Any]) -> None:
        """Makes the folder and writes `sweep.json`; what a killed run was writing is removed."""
        self.cells_folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, *(self.folder / name for name in _WRITTEN_INTO)):
            remove_abandoned(folder)
        self.describe(description)

    def describe(self, description: dict[str, Any]) -> None:
        """Writes `sweep.json`, in place of an earlier one."""
        write_whole(self.folder / SWEEP_FILE, json.dumps(description, indent=2, default=str) + "\n")

    def finished(self, cell_id: str, *, judged: bool | Literal["full"] = False) -> CellRecord | None:
        """The record of a cell that need not run again, or None. A failed cell runs again.

        Args:
            cell_id: which cell.
            judged: a cell that was measured without a verdict runs again too; `full`: or without all evidence.

        Raises:
            DamagedError: its files are not what was written.
        """
        record = self.read(cell_id)
        return record if record is not None and self.need_not_run(record, judged=judged) else None

    def recording(self, cell_id: str) -> Path:
        """Where the recording of a cell lies, if it has one."""
        return self.folder / RECORDINGS_FOLDER / f"{cell_id}{RECORDING_SUFFIX}"

    def need_not_run(self, record: CellRecord, *, judged: bool | Literal["full"]) -> bool:
        """Whether a record is that of a finished cell: see `finished`."""
        if record.status is not Status.OK:
            return record.status is not Status.FAILED
        lacks = record.verdict is None or (judged == "full" and not record.verdict.complete)
        return not (judged and lacks) and not (self._recorded and not self.recording(record.cell_id).is_file())

    def read(self, cell_id: str) -> CellRecord | None:
        """The record of a cell, all of whose files are whole; None where nothing lies.

        Raises:
            DamagedError: its files are not what was written, or of a version that this one does not read.
        """
        folder = self.cells_folder / cell_id
        if not os.path.lexists(folder):
            return None
        try:
            return _read_cell(folder)
        except DamagedError:
            return _read_cell(folder)  # in between, another process may have put a better attempt in its place

    def write(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> CellRecord:
        """Writes a cell in a folder beside its place, then renames it. A failed or less complete attempt makes way.
        Returns the record that lies there then: this one, or an earlier one that says as much. A failed attempt beside
        an earlier one that was measured is kept as `failed/<cell_id>.json`, until a later one is measured."""
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=self.cells_folder))
        try:
            temporary.chmod(0o755)
            files = {CELL_FILE: record.model_dump_json(indent=2).encode() + b"\n", MODULES_FILE: _parquet(modules)}
            if (tokens := tokens_table(modules)) is not None:
                files[TOKENS_FILE] = _parquet_bytes(tokens)
            for name, data in {**files, SUMS_FILE: sums_of(files)}.items():
                _write_durably(temporary / name, data)
            stands = self._put_in_place(temporary, record)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        failed = self._failed(record.cell_id)
        if stands is not record and record.status is Status.FAILED:
            _write_document(failed, record)
        else:
            failed.unlink(missing_ok=True)
        return stands

    def _failed(self, cell_id: str) -> Path:
        return self.folder / FAILED_FOLDER / f"{cell_id}.json"

    def failure(self, cell_id: str) -> CellRecord | None:
        """The attempt that failed after what lies in the cell's folder was measured; None where none did.

        Raises:
            DamagedError: the file cannot be read.
        """
        path = self._failed(cell_id)
        return read_document(path, read_bytes(path), CellRecord) if os.path.lexists(path) else None

    def adopt(self, other: Store, record: CellRecord) -> None:
        """Copies a finished cell of another sweep."""
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=self.cells_folder))
        try:
            shutil.copytree(other.cells_folder / record.cell_id, temporary, dirs_exist_ok=True)
            self._put_in_place(temporary, record)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def _put_in_place(self, temporary: Path, record: CellRecord) -> CellRecord:
        final = self.cells_folder / record.cell_id
        verdict = record.verdict
        judged: bool | Literal["full"] = "full" if verdict and verdict.complete else verdict is not None
        while True:
            with contextlib.suppress(DamagedError):  # it makes way
                if there := self.finished(record.cell_id, judged=judged):
                    return there  # another process was first; its cell has the same choices and environment
            aside = temporary.with_name(f"{temporary.name}-replaced")
            with contextlib.suppress(FileNotFoundError):  # nothing is there, or another process put it aside
                final.rename(aside)
                _discard(aside)
            try:
                temporary.rename(final)
                return record
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                # another process put its cell there in between: whose stays?

    def write_explanation(self, explanation: ExplanationRecord) -> Path:
        """Writes `explain/<cell_id>.json`, whole or not at all; a newer one takes the place of an older."""
        path = self.folder / EXPLAIN_FOLDER / f"{explanation.cell_id}.json"
        _write_document(path, explanation)
        return path

    def explanation(self, cell_id: str) -> ExplanationRecord | None:
        """What `explain` found of a cell; None where it was not asked.

        Raises:
            DamagedError: the file cannot be read.
        """
        path = self.folder / EXPLAIN_FOLDER / f"{cell_id}.json"
        return read_document(path, read_bytes(path), ExplanationRecord) if os.path.lexists(path) else None

    def cell_ids(self) -> list[str]:
        """Every cell that lies here, whole or not, in order."""
        return sorted(path.name for path in self.cells_folder.glob("[!.]*"))

    def records(self) -> list[CellRecord]:
        """Every cell that lies here, in the order of the cells' ids.

        Raises:
            DamagedError: the files of one are not what was written.
        """
        found = map(self.read, self.cell_ids())
        return [record for record in found if record is not None]

    def modules(self, cell_id: str) -> list[ModuleRecord]:
        """Every module of a cell in order of execution; none if the cell did not get that far.

        Raises:
            DamagedError: modules.parquet is not what was written.
        """
        rows = self.modules_table(cell_id).to_pylist()
        for row in rows:
            row["measures"] = {name: row.pop(name) for name in PairMeasures.model_fields}
        return _MODULES.validate_python(rows)

    def modules_table(self, cell_id: str) -> pyarrow.Table:
        """`modules.parquet` of a cell as it is.

        Raises:
            DamagedError: see `modules`.
        """
        folder = self.cells_folder / cell_id
        return _table(folder / MODULES_FILE, read_checked(folder, (MODULES_FILE,))[MODULES_FILE])

    def tokens(self, cell_id: str) -> dict[str, TokenFigures]:
        """The figures by token of a cell's layers, by their names in order of execution; empty where it has none.

        Raises:
            DamagedError: tokens.parquet is not what was written.
        """
        table = self.tokens_table(cell_id)
        return {} if table is None else tokens_by_layer(table)

    def tokens_table(self, cell_id: str) -> pyarrow.Table | None:
        """`tokens.parquet` of a cell as it is; None where it has none.

        Raises:
            DamagedError: see `tokens`.
        """
        folder = self.cells_folder / cell_id
        if TOKENS_FILE not in names_in(folder):
            return None
        return _table(folder / TOKENS_FILE, read_checked(folder, (TOKENS_FILE,))[TOKENS_FILE])


def read_document(path: Path, data: bytes, kind: type[_Document]) -> _Document:
    """A JSON file with a `schema_version` as a record.

    Raises:
        DamagedError: it is no JSON, no such record, or of a newer version than this one reads.
    """
    try:
        _Versioned.model_validate_json(data)
        return kind.model_validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise DamagedError(f"{path}: {where}{': ' * bool(where)}{first['msg']}") from None


def _read_cell(folder: Path) -> CellRecord:
    tokens = [TOKENS_FILE] * (TOKENS_FILE in names_in(folder))
    files = read_checked(folder, (CELL_FILE, MODULES_FILE, *tokens))
    record = read_document(folder / CELL_FILE, files[CELL_FILE], CellRecord)
    if record.cell_id != folder.name:
        raise DamagedError(f"{folder / CELL_FILE}: is the record of another cell, {record.cell_id}")
    if not (folder / SUMS_FILE).exists():
        _table(folder / MODULES_FILE, files[MODULES_FILE])
    return record


def _table(path: Path, data: bytes) -> pyarrow.Table:
    import pyarrow.parquet

    try:
        # in this thread: one of Arrow's own that is not over when Python ends makes the process abort
        return pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data), pre_buffer=False).read(use_threads=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise DamagedError(f"{path}: {str(error).partition(chr(10))[0]}") from None


def _write_document(path: Path, document: BaseModel) -> None:
    path.parent.mkdir(exist_ok=True)
    write_whole(path, document.model_dump_json(indent=2) + "\n")


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that appears by rename, whole or not at all; it takes the place of an older one."""
    temporary = path.with_name(f"{temporary_prefix()}{path.name}")
    try:
        _write_durably(temporary, content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@functools.cache
def modules_schema() -> pyarrow.Schema:
    """The columns of `modules.parquet`, derived from the records, so that the two cannot drift apart."""
    import pyarrow

    arrow = {int: "int64", float: "double", str: "string", bool: "bool"}
    columns = []
    for name, field in {**ModuleRecord.model_fields, **PairMeasures.model_fields}.items():
        if name not in ("measures", "tokens"):
            plain, *optional = get_args(field.annotation) or (field.annotation,)
            columns.append(pyarrow.field(name, arrow[plain], nullable=bool(optional)))
    return pyarrow.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION)})


def _parquet(modules: Sequence[ModuleRecord]) -> bytes:
    """A row a module: the fields of `ModuleRecord`, then those of its measures."""
    import pyarrow

    schema = modules_schema()
    own = [name for name in schema.names if name in ModuleRecord.model_fields]
    rows = (
        map(attrgetter(*own), modules),
        map(attrgetter(*PairMeasures.model_fields), (one.measures for one in modules)),
    )
    columns = [column for part in rows for column in zip(*part, strict=True)] if modules else [()] * len(schema)
    arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
    return _parquet_bytes(pyarrow.Table.from_arrays(arrays, schema=schema))


def _parquet_bytes(table: pyarrow.Table) -> bytes:
    import pyarrow
    import pyarrow.parquet

    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def _discard(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
