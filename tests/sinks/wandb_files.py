"""Reads what an offline run wrote: a `.wandb` file and the tables beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2 as pb

from sweeper.sinks.wandb.folder import messages


@dataclass(kw_only=True)
class OfflineRun:
    """What is in a run's folder.

    Attributes:
        run: the protobuf message with id, name, group, job type, tags, host.
        config: parsed. history: the rows in order, without W&B's own `_step`, `_runtime`, `_timestamp`.
        summary: the last value a key, nested. step_metrics: metric or glob -> the metric it is drawn against.
        exit_code: None when the run was never finished. folder: of the run.
    """

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)
    exit_code: int | None = None

    def table(self, key: str) -> dict[str, Any]:
        """`{"columns": [...], "data": [[...], ...]}` of the table logged as `key`."""
        path = self.folder / "files" / self.summary[key]["path"]
        return json.loads(path.read_text())

    def curve(self, step: str) -> list[dict[str, Any]]:
        """The history rows that are drawn against `step`."""
        return [row for row in self.history if step in row]


def read_runs(folder: Path) -> list[OfflineRun]:
    """All runs under `<folder>/wandb`, in the order they started. The service must be down: `wandb.teardown()`.

    `run.finish()` returns before an offline run is on disk.
    """
    runs = [read_run(path) for path in folder.glob("wandb/*run-*/*.wandb")]
    started = [run for run in runs if run.run is not None]  # a `wandb.init` that raised leaves a file without a run
    return sorted(started, key=lambda run: run.run.start_time.ToNanoseconds())


def read_run(path: Path) -> OfflineRun:
    run = OfflineRun(folder=path.parent)
    for record in _records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run.run = record.run
            run.config.update({item.key: json.loads(item.value_json) for item in record.run.config.update})
        elif kind == "history":
            row = {_path(item)[-1]: json.loads(item.value_json) for item in record.history.item}
            run.history.append({key: value for key, value in row.items() if not key.startswith("_")})
        elif kind == "summary":
            for item in record.summary.update:
                _put(run.summary, _path(item), json.loads(item.value_json))
        elif kind == "metric" and record.metric.step_metric:
            run.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            run.exit_code = record.exit.exit_code
    return run


def _records(data: bytes) -> Iterator[Any]:
    assert data[:4] == b":W&B"
    for message in messages(data):
        record = pb.Record()
        record.ParseFromString(message)
        yield record


def _path(item: Any) -> list[str]:
    return [item.key] if item.key else list(item.nested_key)


def _put(summary: dict[str, Any], path: list[str], value: Any) -> None:
    for key in path[:-1]:
        summary = summary.setdefault(key, {})
    summary[path[-1]] = value
