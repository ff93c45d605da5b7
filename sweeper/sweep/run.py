"""One sweep from its request to its exit code: plan, run what is not finished, store, tell the sinks."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sweeper.environment import environment
from sweeper.errors import ConfigError
from sweeper.launchers.inline import InlineLauncher
from sweeper.launchers.launcher import units_of
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import CellRecord
from sweeper.records.store import SWEEP_FILE, Store
from sweeper.records.sweep import PlannedIds, Sweep, SweepDescription
from sweeper.sinks.sink import AllSinks, Sink
from sweeper.sweep.exit_code import exit_code
from sweeper.sweep.finished import finished_cells

if TYPE_CHECKING:
    from sweeper.config import Settings
    from sweeper.launchers.launcher import Launcher
    from sweeper.planning.grid import SweepRequest
    from sweeper.sweep.runner import Runner

INTERRUPTED = 130


def run(
    request: SweepRequest, sinks: Mapping[str, Sink] = MappingProxyType({}), launcher: Launcher | None = None
) -> int:
    """Runs a sweep to its end. Exit code 0, 1 (`exit_code`, or a sink failed), 130 on Ctrl-C: finished cells stay.

    Args:
        request: what was asked for.
        sinks: who is told, by name.
        launcher: who runs the cells; None is this process.
    """
    plan = make_plan(request, environment(request.device))
    store = Store(plan.folder)
    _check_references(plan, store)
    try:
        store.open(_description(request, plan, store).model_dump(mode="json"))
    except OSError as error:
        raise ConfigError(
            f"output_dir: cannot write to {plan.folder}: {error.strerror}; type output_dir=FOLDER"
        ) from None
    records: dict[str, CellRecord] = {}
    told = AllSinks(sinks)
    told.sweep_started(plan)
    try:
        _run_cells(plan, request.settings, launcher or InlineLauncher(), store, told, records)
    except KeyboardInterrupt:
        told.interrupted(_in_order(plan, records))
        return INTERRUPTED
    except OSError as error:  # a full disk: what is finished stays
        told.interrupted(_in_order(plan, records))
        told.said(f"The reason: {error}")
        return 1
    told.sweep_finished(_in_order(plan, records))
    code, lines = exit_code(_in_order(plan, records), request.settings.fail_on, plan.folder)
    for line in lines:
        told.said(line)
    return 1 if told.failed else code


def _in_order(plan: Plan, records: Mapping[str, CellRecord]) -> list[CellRecord]:
    return [records[planned.cell_id] for planned in plan.cells if planned.cell_id in records]


def _check_references(plan: Plan, store: Store) -> None:
    """A folder's cells are found by their ids, which do not tell what they were compared with.

    Raises:
        ConfigError: a folder that was given a name holds cells of another reference.
    """
    for planned in plan.cells:
        record = store.finished(planned.cell_id)
        if record is not None and record.reference_id != planned.reference_id:
            raise ConfigError(
                f"sweep={plan.sweep}: {plan.folder} holds cells that were compared with another reference; "
                "type another name: sweep=NAME"
            )


def _run_cells(
    plan: Plan, settings: Settings, launcher: Launcher, store: Store, sinks: Sink, records: dict[str, CellRecord]
) -> None:
    """Fills `records`: first those of an earlier run or another sweep, then what the launcher gives, once stored."""
    finished_before = finished_cells(plan, judged=settings.verdict)
    missing = [planned for planned in plan.cells if planned.cell_id not in finished_before]
    for at, record in finished_before.values():
        if at.folder != store.folder:
            store.adopt(at, record)
        records[record.cell_id] = record
        sinks.cell_skipped(record)
    if not missing:
        return
    _fix_cublas_workspace(plan)
    shared = _shared_references(plan) if settings.weights == "resident" else frozenset()
    make_worker = partial(_make_runner, environment=plan.environment, settings=settings, shared=shared)
    with contextlib.closing(launcher.launch(units_of(missing), make_worker, sinks)) as finished:
        for record, modules in finished:
            store.write(record, modules)
            sinks.cell_finished(record, modules)
            records[record.cell_id] = record


def _make_runner(sink: Sink, *, environment: dict[str, Any], settings: Settings, shared: frozenset[str]) -> Runner:
    from sweeper.sweep.runner import Runner  # torch and transformers: only once there is something to run

    return Runner(
        environment,
        latency_repeats=settings.latency_repeats,
        verdict=settings.verdict,
        weights=settings.weights,
        shared=shared,
        say=sink.said,
        progress=sink.texts_done,
    )


def _fix_cublas_workspace(plan: Plan) -> None:
    """torch reads it once, at the first matrix product of the process, which may be of another cell than the one that
    asks for determinism."""
    cells = (cell for planned in plan.cells for cell in (planned.cell, planned.reference))
    if any(cell.numerics.deterministic and cell.device == "cuda" for cell in cells):
        from sweeper.models.flags import CUBLAS_WORKSPACE_CONFIG, DETERMINISTIC_WORKSPACE

        os.environ.setdefault(CUBLAS_WORKSPACE_CONFIG, DETERMINISTIC_WORKSPACE)


def _shared_references(plan: Plan) -> frozenset[str]:
    """Those that several cells name."""
    named = Counter(planned.reference_id for planned in plan.cells if planned.unsupported is None)
    return frozenset(reference for reference, cells in named.items() if cells > 1)


def _description(request: SweepRequest, plan: Plan, store: Store) -> SweepDescription:
    """What is asked for; behind it what the folder holds of earlier commands, which a name that was given keeps."""
    pairs = [PlannedIds(cell_id=cell.cell_id, reference_id=cell.reference_id) for cell in plan.cells]
    commands: tuple[dict[str, Any], ...] = ()
    if (plan.folder / SWEEP_FILE).is_file():
        before = Sweep.read(plan.folder)
        planned = {pair.cell_id for pair in pairs}
        held = [record for record in before.records if record.cell_id not in planned]
        pairs += [PlannedIds(cell_id=record.cell_id, reference_id=record.reference_id) for record in held]
        earlier = [*before.description.earlier, before.description.config]
        commands = tuple(config for config in earlier if config.get("overrides") != request.config["overrides"])
    return SweepDescription(
        grid=plan.grid, sweep=plan.sweep, config=request.config, earlier=commands, cells=tuple(pairs)
    )
