"""Writes the runs of a sweep: one a cell, one for all of it. What is finished is not written again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sweeper.config import WandbSettings
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.schema import SCHEMA_VERSION
from sweeper.records.sweep import short_label
from sweeper.reports.answer import answer
from sweeper.sinks.wandb.folder import RunsFolder
from sweeper.sinks.wandb.rows import (
    cell_config,
    cell_row,
    cell_summary,
    curve_rows,
    module_table,
    shown,
    summary_of,
    text_rows,
    without_paths,
)

# A server that goes away must not hold up a sweep, as wandb's own limits do. What was not sent stays on disk.
INIT_TIMEOUT_S = 30.0
RETRIES = 4
RETRY_WAIT_MAX_S = 5.0

logger = logging.getLogger("sweeper.sinks.wandb")


@dataclass(frozen=True, kw_only=True)
class About:
    """What all runs of a sweep say of it.

    Attributes:
        folder: the sweep's.
        cell_ids: of all that were planned: they tell sweeps of one name apart.
        varying: the axes that tell its cells apart.
        command: what was typed.
    """

    folder: Path
    grid: str
    sweep: str
    cell_ids: tuple[str, ...]
    varying: tuple[str, ...]
    command: str

    @property
    def tag(self) -> str:
        """A hash of the sweep's name: a cell that several sweeps hold has a run in each."""
        return _hash(f"{self.grid}/{self.sweep}")[:6]


class RunWriter:
    """Writes runs into `<sweep>/wandb`, and to the server in `online` mode. Nothing that goes wrong there is raised.

    Args:
        settings: mode and place.
        about: the sweep.

    Attributes:
        about: the sweep.
        failed: something went wrong, and a warning said it.
    """

    def __init__(self, settings: WandbSettings, about: About) -> None:
        self._settings = settings
        self._mode: Literal["offline", "online", "disabled"] = settings.mode
        self.about = about
        self._runs = RunsFolder(about.folder)
        self._warned: set[str] = set()
        self.failed = False

    def cell(self, record: CellRecord, read_modules: Callable[[], Sequence[ModuleRecord]]) -> bool:
        """Writes the run of a cell, unless it is there. Returns whether it was written."""
        if record.status is Status.UNSUPPORTED:
            return False
        run_id = f"{record.cell_id}-{record.attempt}-{self.about.tag}"
        arguments = {
            "job_type": "cell",
            "id": run_id,  # an id that syncs twice would append to the first attempt
            "name": str(without_paths(short_label(record.axes, self.about.varying))),
            "config": cell_config(record),
        }
        failed = record.status is Status.FAILED
        with (
            self._border("a cell"),
            self._runs.claimed(run_id, obsolete=f"{record.cell_id}-") as mine,
        ):
            if not mine:
                return False
            modules = read_modules()
            with self._run(arguments, failed=failed) as run:
                _log_curve(run, curve_rows(modules), "layer")
                _log_curve(run, text_rows(record), "text")
                run.summary.update(cell_summary(record, modules) | self._origin(record))
                if modules:
                    self._log_table(run, "modules", module_table(modules))
            return True
        return False

    def sweep(self, records: Sequence[CellRecord]) -> bool:
        """Writes the run of the sweep, unless it is there and says the same. Returns whether it was written."""
        if not records:
            return False
        about = self.about
        name = f"sweep-{_hash(json.dumps([about.grid, about.sweep, sorted(about.cell_ids)]))[:12]}"
        content = _hash(json.dumps([(record.cell_id, record.attempt) for record in records]))[:6]
        arguments: dict[str, Any] = {
            "job_type": "sweep",
            "id": f"{name}-{content}",
            "name": f"{about.grid} {about.sweep}",
            "config": {"schema_version": SCHEMA_VERSION, "environment": records[0].environment},
        }
        with self._border("the sweep"), self._runs.claimed(arguments["id"], obsolete=f"{name}-") as mine:
            if not mine:
                return False
            with self._run(arguments, failed=False) as run:
                statuses = [record.status for record in records]
                run.summary.update({"statuses": {status.value: statuses.count(status) for status in Status}})
                lines = "\n".join(line.text for line in answer(records, about.folder))
                run.summary.update({"answer": without_paths(lines)} | self._origin(records[0]))
                self._log_table(run, "cells", [cell_row(record) for record in records])
            return True
        return False

    def close(self) -> None:
        """Ends the writing: what is not on disk by then is written by who comes next."""
        with self._border("a run"):
            self._runs.close()

    def _origin(self, record: CellRecord) -> dict[str, Any]:
        """What was typed, and which state of this package ran it."""
        commit = record.environment.get("commit")
        return {"command": without_paths(self.about.command), **({"commit": commit} if commit else {})}

    # ---- one run ------------------------------------------------------------------------------------------------

    @contextmanager
    def _run(self, arguments: dict[str, Any], *, failed: bool) -> Iterator[Any]:
        """A run of its own (`create_new`: a run that an exception left open is never continued), closed in any case."""
        run = self._open(arguments)
        exit_code = 1
        try:
            yield run
            exit_code = int(failed)
        finally:
            run.finish(exit_code=exit_code)
            _let_go(run.id)

    def _open(self, arguments: dict[str, Any]) -> Any:
        import wandb

        about = self.about
        arguments = arguments | {
            "config": {"grid": about.grid, "sweep": about.sweep} | arguments["config"],
            "project": self._settings.project,
            "entity": self._settings.entity,
            "group": about.sweep,
            "tags": [about.grid, *self._settings.tags],
            "dir": str(about.folder),
            "reinit": "create_new",
            "settings": _private_settings(),
        }
        try:
            return wandb.init(mode=self._mode, **arguments)
        except wandb.Error as error:
            if self._mode == "offline":
                raise
            self._mode = "offline"
            self._warn("the server cannot be used, so this and later runs are written offline", error)
            # The service keeps the first id for itself.
            return wandb.init(mode=self._mode, **(arguments | {"id": f"{arguments['id']}-offline"}))

    def _log_table(self, run: Any, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs a table, whose file lies in the sweep's folder: it travels with it.

        wandb lays it into the user's data folder, and an offline run then names it there. Named relative to the sweep's
        folder, where `wandb sync` is typed, it is found wherever that lies.
        """
        folder = self.about.folder
        log_artifact = run.log_artifact

        def with_own_files(artifact: Any, *more: Any, **options: Any) -> Any:
            for entry in artifact.manifest.entries.values():
                own = folder / "wandb" / "tables" / f"{run.id}-{Path(entry.path).name}"
                own.parent.mkdir(exist_ok=True)
                shutil.move(entry.local_path, own)
                entry.local_path = str(own.relative_to(folder) if self._mode == "offline" else own.absolute())
            return log_artifact(artifact, *more, **options)

        table = _table(rows)
        with _data_folder(self._runs.scratch()):
            run.log_artifact = with_own_files
            try:
                run.log({key: table})
            finally:
                del run.log_artifact
        table.data = []  # they are in the file, and whoever keeps the run keeps its tables

    # ---- what goes wrong ----------------------------------------------------------------------------------------

    @contextmanager
    def _border(self, what: str) -> Iterator[None]:
        """Nothing that goes wrong in W&B goes further than a warning."""
        try:
            yield
        except Exception as error:
            self._warn(f"{what} could not be logged; the files of the sweep are complete", error)

    def _warn(self, what: str, error: Exception) -> None:
        self.failed = True
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("Weights & Biases: %s (%s: %s)", what, type(error).__name__, first_line(error))


def _private_settings() -> Any:
    """Silent, patient for seconds, and without what W&B would collect: code, git, host, packages, system metrics."""
    import wandb

    patience: dict[str, Any] = {}
    for part in ("file_stream", "file_transfer", "graphql"):
        patience |= {f"x_{part}_retry_max": RETRIES, f"x_{part}_retry_wait_max_seconds": RETRY_WAIT_MAX_S}
    return wandb.Settings(
        silent=True,
        console="off",
        host="",
        program="sweeper",
        init_timeout=INIT_TIMEOUT_S,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        save_code=False,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        **patience,
    )


def _log_curve(run: Any, rows: Sequence[dict[str, Any]], step: str) -> None:
    """One history row a step, drawn against `step`, so that curves of several runs lie over each other."""
    run.define_metric(step, hidden=True)
    for metric in sorted({key for row in rows for key in row if "/" in key}):
        run.define_metric(metric, step_metric=step, summary=summary_of(metric))
    for row in rows:
        run.log(row)


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A wandb.Table with the columns of all rows; None where a row has no such column."""
    import wandb

    columns = list(dict.fromkeys(column for row in rows for column in row))
    first = {column: next((row[column] for row in rows if row.get(column) is not None), "") for column in columns}
    table = wandb.Table(columns=columns, dtype=[type(first[column]) for column in columns], optional=True)
    # Not add_data: it works out the type of the whole row anew for each row, a third of a second for 390 modules.
    table.data = [[shown(row.get(column)) for column in columns] for row in rows]
    return table


def _let_go(run_id: str) -> None:
    """Frees a finished run: wandb keeps the last hundred artifacts for their names, and each its table and its run."""
    try:
        from wandb.sdk.artifacts.artifact_instance_cache import artifact_instance_cache_by_client_id as kept
    except ImportError:  # it is wandb's own affair: another version may keep none
        return
    for key, artifact in list(kept.items()):
        if artifact.name.startswith(f"run-{run_id}-"):
            del kept[key]


@contextmanager
def _data_folder(place: Path) -> Iterator[None]:
    """W&B's data folder is another one."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(place)
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    return str(error).partition("\n")[0]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
