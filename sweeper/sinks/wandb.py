"""Weights & Biases: one run a cell attempt, and one run for the sweep with the table of cells.

Everything here is derived from what the store wrote. A failure of W&B is a warning, never the failure of a cell.
`wandb` is imported only where it is used: `wandb.mode=disabled` works without the package.
"""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from sweeper.config import WandbSettings
from sweeper.errors import ConfigError
from sweeper.records.cell import SCHEMA_VERSION, CellRecord, ModuleRecord, Status
from sweeper.records.store import module_rows
from sweeper.records.sweep import short_label, varying_axes
from sweeper.reports.answer import answer
from sweeper.reports.cell import furthest
from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan

LAYER_MEASURES = ("max_abs", "mean_abs", "rel_l2", "sqnr_db", "cosine", "equal_fraction")
MOST_TEXTS = 1000  # that have a row each: the curve of a W&B chart has no more points than that
PART_MEASURES = ("max_abs", "mean_abs", "cosine")  # of q_proj, mlp, ...: fewer, because each is a chart of its own
# A server that goes away must not hold up a sweep, as wandb's own limits do. What was not sent stays on disk.
INIT_TIMEOUT_S = 30.0
RETRIES = 4
RETRY_WAIT_MAX_S = 5.0

logger = logging.getLogger(__name__)


def make_wandb_sink(settings: WandbSettings) -> WandbSink | None:
    """The sink that `settings` ask for, or None for `disabled`. Touches no network.

    Raises:
        ConfigError: the package is missing, or `online` without a usable login.
    """
    if settings.mode == "disabled":
        return None
    try:
        import wandb  # noqa: F401 (only whether it is there and works)
    except ImportError:
        needed = "needs the package wandb: pip install wandb, or wandb.mode=disabled"
        raise ConfigError(f"wandb.mode={settings.mode} {needed}") from None
    if settings.mode == "online":
        _require_login()
    return WandbSink(settings)


def _require_login() -> None:
    import wandb

    try:
        wandb.setup(settings=wandb.Settings(silent=True, mode="online"))  # a silent login does not ask the server who
        logged_in = wandb.login(prompt=False, verify=False)
    except wandb.Error as error:
        raise ConfigError(f"wandb.mode=online: {_first_line(error)}") from None
    if not logged_in:
        raise ConfigError(
            "wandb.mode=online, but nobody is logged in: run `wandb login`, set WANDB_API_KEY, or wandb.mode=offline"
        )


class WandbSink(Sink):
    """Logs to W&B, into `<plan.folder>/wandb`. Made by `make_wandb_sink`."""

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._mode: Literal["offline", "online", "disabled"] = settings.mode
        self._warned: set[str] = set()

    def sweep_started(self, plan: Plan) -> None:
        super().sweep_started(plan)
        self._varying = varying_axes([planned.cell.axes() for planned in plan.cells])

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        if record.status is Status.UNSUPPORTED:
            return
        arguments = {
            "job_type": "cell",
            "id": f"{record.cell_id}-{record.attempt}",  # an id that syncs twice would append to the first attempt
            "name": short_label(record.axes, self._varying),
            "config": cell_config(record),
        }
        failed = record.status is Status.FAILED
        with self._border("a cell"), self._run(arguments, failed=failed) as run:
            _log_curve(run, curve_rows(modules), "layer", summary="max,mean")
            _log_curve(run, text_rows(record), "text", summary="min,mean")
            run.summary.update(cell_summary(record))
            if modules:
                run.log({"modules": _table(module_rows(modules))})

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        if not records:
            return
        arguments = {
            "job_type": "sweep",
            "id": f"sweep-{uuid.uuid4().hex[:8]}",
            "name": f"{self.plan.grid} {self.plan.sweep}",
            "config": {"schema_version": SCHEMA_VERSION, "environment": records[0].environment},
        }
        with self._border("the sweep"), self._run(arguments, failed=False) as run:
            statuses = [record.status for record in records]
            run.summary.update({"statuses": {status.value: statuses.count(status) for status in Status}})
            run.summary.update({"answer": "\n".join(line.text for line in answer(records, self.plan.folder))})
            run.log({"cells": _table([_cell_row(record) for record in records])})

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

    def _open(self, arguments: dict[str, Any]) -> Any:
        import wandb

        shared = {"grid": self.plan.grid, "sweep": self.plan.sweep}
        arguments = arguments | {
            "config": shared | arguments["config"],
            "project": self._settings.project,
            "entity": self._settings.entity,
            "group": self.plan.sweep,
            "tags": [self.plan.grid, *self._settings.tags],
            "dir": str(self.plan.folder),
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

    @contextmanager
    def _border(self, what: str) -> Iterator[None]:
        """Nothing that goes wrong in W&B goes further than a warning."""
        try:
            yield
        except Exception as error:
            self._warn(f"{what} could not be logged; the files of the sweep are complete", error)

    def _warn(self, what: str, error: Exception) -> None:
        if what not in self._warned:
            self._warned.add(what)
            logger.warning("Weights & Biases: %s (%s: %s)", what, type(error).__name__, _first_line(error))


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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _log_curve(run: Any, rows: Sequence[dict[str, Any]], step: str, summary: str) -> None:
    """One history row a step, drawn against `step`, so that curves of several runs lie over each other."""
    run.define_metric(step, hidden=True)
    for prefix in sorted({key.partition("/")[0] for row in rows for key in row if "/" in key}):
        run.define_metric(f"{prefix}/*", step_metric=step, summary=summary)
    for row in rows:
        run.log(row)


def cell_config(record: CellRecord) -> dict[str, Any]:
    """Every axis by its name, those of the reference as `reference.<axis>`, and where the cell ran.

    Nested dicts, which W&B shows and filters as `reference.dtype`; it advises against dots inside a key.
    """
    return {
        **record.axes,
        "cell_id": record.cell_id,
        "attempt": record.attempt,
        "reference_id": record.reference_id,
        "reference": record.reference_axes,
        "environment": record.environment,
        "checkpoint_revision": record.checkpoint_revision,
        "attention_kernels": list(record.attention_kernels),
        "schema_version": record.schema_version,
    }


def cell_summary(record: CellRecord) -> dict[str, Any]:
    """The headline figures, nested: W&B shows `output.max_abs`. What is not finite or not measured is absent."""
    summary: dict[str, Any] = {
        "status": record.status.value,
        "reason": record.reason,
        "first_divergence": record.first_divergence,
        "verdict": record.verdict.kind if record.verdict else None,
    }
    for name in ("output", "language", "cost"):
        figures = getattr(record, name)
        summary[name] = _present(figures.model_dump()) if figures else None
    if record.state:
        summary["state"] = record.state.model_dump(exclude={"differing"}) | {"differing": len(record.state.differing)}
    cosines = [text.embedding_cosine for text in record.texts]
    if cosines and all(map(math.isfinite, cosines)):  # a NaN among them must not hide behind the least of the others
        summary["embedding_cosine"] = {"min": min(cosines), "mean": math.fsum(cosines) / len(cosines)}
    return _present(summary)


def curve_rows(modules: Sequence[ModuleRecord]) -> list[dict[str, Any]]:
    """One row a layer: `layer/<measure>` of the layer's output, `self_attn/q_proj/<measure>` of what is inside it.

    Slashes, because `define_metric` matches no glob against a key with a dot.

    A figure that is infinite or NaN (`sqnr_db` of an identical layer) is a gap in the curve.
    """
    rows: dict[int, dict[str, Any]] = {}
    for module in modules:
        if module.layer is None:
            continue
        row = rows.setdefault(module.layer, {"layer": module.layer})
        names = LAYER_MEASURES if module.kind == "layer" else PART_MEASURES
        path = module.kind.replace(".", "/")
        row.update(_present({f"{path}/{name}": getattr(module.measures, name) for name in names}))
    return [rows[layer] for layer in sorted(rows)]


def text_rows(record: CellRecord) -> list[dict[str, Any]]:
    """One row a text: `text/<figure>`, against `text`. Of more than `MOST_TEXTS` those that are furthest off."""
    return [
        {"text": text.text, **_present({f"text/{name}": value for name, value in text if name != "text"})}
        for text in sorted(furthest(record.texts, MOST_TEXTS), key=lambda text: text.text)
    ]


def _cell_row(record: CellRecord) -> dict[str, Any]:
    """Axes, status and headline figures, flat: `output.max_abs`."""
    row: dict[str, Any] = {"cell_id": record.cell_id, "reference_id": record.reference_id, **record.axes}
    for name, value in cell_summary(record).items():
        row |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return row


def _table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A wandb.Table with the columns of all rows; None where a row has no such column."""
    import wandb

    columns = list(dict.fromkeys(column for row in rows for column in row))
    first = {column: next((row[column] for row in rows if row.get(column) is not None), "") for column in columns}
    table = wandb.Table(columns=columns, dtype=[type(first[column]) for column in columns], optional=True)
    # Not add_data: it works out the type of the whole row anew for each row, a third of a second for 390 modules.
    table.data = [[_shown(row.get(column)) for column in columns] for row in rows]
    return table


def _shown(value: Any) -> Any:
    """Replaces infinity and NaN by None: wandb would write them as bare words that are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _present(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in figures.items() if _shown(value) is not None}
