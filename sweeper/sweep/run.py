"""One sweep from its request to its exit code: plan, run what is not finished, store, tell the sinks."""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sweeper.errors import ConfigError, DamagedError, SweeperError
from sweeper.launchers.collector import collect_seldom, collecting_seldom
from sweeper.launchers.inline import InlineLauncher
from sweeper.launchers.launcher import Finished, Lost
from sweeper.launchers.ready import make_ready
from sweeper.planning.plan import Plan
from sweeper.recordings.wanted import Recordings, recordings_of
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.sharing import SharedRecords
from sweeper.records.store import SWEEP_FILE, Store
from sweeper.records.sweep import PlannedIds, SweepDescription, read_description
from sweeper.sinks.sink import AllSinks, Sink
from sweeper.sweep.exit_code import exit_code
from sweeper.sweep.finished import finished_cells
from sweeper.sweep.needed import NEEDED
from sweeper.sweep.new_record import begun, ended
from sweeper.sweep.shared_work import SharedWork
from sweeper.sweep.signals import INTERRUPTED, stopping_signals

if TYPE_CHECKING:
    from sweeper.config import Settings
    from sweeper.launchers.launcher import Launcher
    from sweeper.planning.grid import SweepRequest
    from sweeper.sweep.runner import Runner


def run(
    request: SweepRequest, sinks: Mapping[str, Sink] = MappingProxyType({}), launcher: Launcher | None = None
) -> int:
    """Runs a sweep to its end. Exit code 0, 1 (`exit_code`, or a sink failed), 130 on Ctrl-C: finished cells stay.

    Args:
        request: what was asked for.
        sinks: who is told, by name.
        launcher: who runs the cells; None is this process.
    """
    launcher = launcher or InlineLauncher()
    with stopping_signals(), collecting_seldom(), contextlib.closing(launcher):
        return _run(request, sinks, launcher)


def _run(request: SweepRequest, sinks: Mapping[str, Sink], launcher: Launcher) -> int:
    plan = launcher.plan(request)
    settings = request.settings
    store = Store(plan.folder, recorded=settings.record)
    said: list[str] = []  # until somebody is told
    finished_before = finished_cells(plan, judged=settings.verdict, recorded=settings.record, say=said.append)
    try:
        store.open(_description(request, plan, store, said.append).model_dump(mode="json"))
    except OSError as error:
        raise ConfigError(
            f"output_dir: cannot write to {plan.folder}: {error.strerror}; type output_dir=FOLDER"
        ) from None
    records = SharedRecords()
    told = AllSinks(sinks)
    told.sweep_started(plan)
    for line in said:
        told.said(line)
    try:
        _adopt(finished_before, store, told, records)
        _run_cells(plan, request.settings, launcher, store, told, records)
    except KeyboardInterrupt:
        told.interrupted(_stored(plan, store))
        return INTERRUPTED
    except SweeperError:  # of a launcher: the cluster is not what the plan was made for
        told.interrupted(_stored(plan, store))
        raise
    except OSError as error:  # a full disk: what is finished stays
        told.interrupted(_stored(plan, store))
        told.said(f"The reason: {error}")
        return 1
    _list_again(request, plan, store)
    told.sweep_finished(_in_order(plan, records))
    code, lines = exit_code(_in_order(plan, records), request.settings.fail_on, plan.folder)
    for line in lines:
        told.said(line)
    return 1 if told.failed else code


def _in_order(plan: Plan, records: Mapping[str, CellRecord]) -> list[CellRecord]:
    return [records[planned.cell_id] for planned in plan.cells if planned.cell_id in records]


def _stored(plan: Plan, store: Store) -> list[CellRecord]:
    """What lies in the folder: a sweep can be stopped between a cell's last byte and the line that would count it."""
    found = []
    for planned in plan.cells:
        with contextlib.suppress(DamagedError, OSError):
            found.append(store.read(planned.cell_id))
    return [record for record in found if record is not None]


def _adopt(finished: Mapping[str, tuple[Store, CellRecord]], store: Store, sinks: Sink, records: SharedRecords) -> None:
    """Fills `records` with those of an earlier run or another sweep."""
    for at, record in finished.values():
        if at.folder != store.folder:
            store.adopt(at, record)
        records.add(record)
        sinks.cell_skipped(record)


def _run_cells(
    plan: Plan, settings: Settings, launcher: Launcher, store: Store, sinks: Sink, records: SharedRecords
) -> None:
    """Adds to `records` what the launcher gives of the cells that are missing, once stored."""
    missing = [planned for planned in plan.cells if planned.cell_id not in records]
    if not missing:
        return
    shared = _shared_references(plan) if settings.weights != "streamed" else frozenset()
    make_worker = partial(
        _make_runner,
        environment=plan.environment,
        settings=settings,
        shared=shared,
        deterministic=_asks_for_determinism(plan),
        recordings=recordings_of(plan, settings),
    )

    def found(record: CellRecord) -> None:
        records.add(record)
        sinks.cell_skipped(record)

    work = SharedWork(missing, store, judged=settings.verdict, found=found)
    try:
        while work.left:
            told = AllSinks({"claims": work, "sinks": sinks})
            with contextlib.closing(launcher.launch(work, make_worker, told)) as finished:
                for record, modules in (_with_record(result, plan) for result in finished):
                    record, modules = _stored_one(store, record, modules)
                    records.add(record)
                    told.cell_finished(record, modules)
            work.wait(sinks.said)
    finally:
        work.close(finished=len(records) == len(plan.cells))


def _stored_one(
    store: Store, record: CellRecord, modules: Sequence[ModuleRecord]
) -> tuple[CellRecord, Sequence[ModuleRecord]]:
    """What lies in the folder once a result is stored: it, or one that was there and says as much."""
    stands = store.write(record, modules)
    if stands is record or record.status is Status.FAILED:  # what failed now is told, whatever was measured before
        return record, modules
    return stands, store.modules(record.cell_id)


def _with_record(result: Finished | Lost, plan: Plan) -> Finished:
    """What a launcher gave; of a cell that was lost with its worker, a record that says so."""
    if isinstance(result, Finished):
        return result
    return Finished(ended(begun(result.planned, plan.environment, result.began), Status.FAILED, result.reason), ())


def _make_runner(
    sink: Sink,
    *,
    environment: dict[str, Any],
    settings: Settings,
    shared: frozenset[str],
    deterministic: bool,
    recordings: Recordings | None,
) -> Runner:
    """Makes a worker, in the process where it is to run."""
    collect_seldom()
    make_ready(environment["device"], NEEDED[environment["device"]])
    from sweeper.sweep.runner import Runner  # torch and transformers: only once there is something to run

    if deterministic:
        from sweeper.models.flags import CUBLAS_WORKSPACE_CONFIG, DETERMINISTIC_WORKSPACE

        # torch reads it once, at the first matrix product of the process, which may be of another cell than asks for it
        os.environ.setdefault(CUBLAS_WORKSPACE_CONFIG, DETERMINISTIC_WORKSPACE)
    return Runner(
        environment,
        latency_repeats=settings.latency_repeats,
        verdict=settings.verdict,
        weights=settings.weights,
        shared=shared,
        recordings=recordings,
        say=sink.said,
        progress=sink.texts_done,
    )


def _asks_for_determinism(plan: Plan) -> bool:
    cells = (cell for planned in plan.cells for cell in (planned.cell, planned.reference))
    return any(cell.numerics.deterministic and cell.device == "cuda" for cell in cells)


def _shared_references(plan: Plan) -> frozenset[str]:
    """Those that several cells name."""
    named = Counter(planned.reference_id for planned in plan.cells if planned.unsupported is None)
    return frozenset(reference for reference, cells in named.items() if cells > 1)


def _description(request: SweepRequest, plan: Plan, store: Store, say: Callable[[str], None]) -> SweepDescription:
    """What is asked for; behind it what the folder holds of earlier commands, which a name that was given keeps."""
    pairs = [PlannedIds(cell_id=cell.cell_id, reference_id=cell.reference_id) for cell in plan.cells]
    commands: tuple[dict[str, Any], ...] = ()
    lying = set(store.cell_ids())
    held = lying - {pair.cell_id for pair in pairs}
    if lying or os.path.lexists(plan.folder / SWEEP_FILE):
        try:
            before = read_description(plan.folder, missing=DamagedError)
        except DamagedError as error:
            say(f"{error}; written anew, without the commands that it held")
            pairs += _held(store, sorted(held))
        else:
            known = [pair for pair in before.cells if pair.cell_id in held]
            pairs += [*known, *_held(store, sorted(held - {pair.cell_id for pair in known}))]
            earlier = [*before.earlier, before.config]
            commands = tuple(config for config in earlier if config.get("overrides") != request.config["overrides"])
    return SweepDescription(
        grid=plan.grid, sweep=plan.sweep, config=request.config, earlier=commands, cells=tuple(pairs)
    )


def _list_again(request: SweepRequest, plan: Plan, store: Store) -> None:
    """Where another command began in this folder meanwhile, it left out what had not run yet."""
    with contextlib.suppress(DamagedError):
        listed = {pair.cell_id for pair in read_description(plan.folder, missing=DamagedError).cells}
        if listed.issuperset(planned.cell_id for planned in plan.cells):
            return
    store.describe(_description(request, plan, store, lambda _: None).model_dump(mode="json"))


def _held(store: Store, cell_ids: Iterable[str]) -> Iterator[PlannedIds]:
    """Cells as a plan names them, as far as their records are whole."""
    for cell_id in cell_ids:
        with contextlib.suppress(DamagedError):
            if record := store.read(cell_id):
                yield PlannedIds(cell_id=cell_id, reference_id=record.reference_id)
