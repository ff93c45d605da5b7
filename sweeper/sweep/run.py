"""One sweep from its request to its exit code: plan, run what is not finished, store, show."""

from __future__ import annotations

import contextlib
import gc
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sweeper.environment import environment
from sweeper.errors import ConfigError
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import CellRecord, Status
from sweeper.records.store import Store
from sweeper.records.sweep import PlannedIds, SweepDescription
from sweeper.sinks import AllSinks
from sweeper.sinks.html import HtmlSink
from sweeper.sinks.terminal import TerminalSink
from sweeper.sinks.wandb import make_wandb_sink

if TYPE_CHECKING:
    from sweeper.planning.grid import SweepRequest
    from sweeper.sinks import Sink

INTERRUPTED = 130


def run(request: SweepRequest, more_sinks: Sequence[Sink] = ()) -> int:
    """Runs a sweep to its end. Exit code 0, 1 if a cell or a sink failed, 130 on Ctrl-C (finished cells are kept)."""
    plan = make_plan(request, environment(request.device))
    wandb_sink = make_wandb_sink(request.settings.wandb)
    terminal = TerminalSink()
    store = Store(plan.folder)
    _check_references(plan, store)
    try:
        store.open(_description(request, plan).model_dump(mode="json"))
    except OSError as error:
        raise ConfigError(
            f"output_dir: cannot write to {plan.folder}: {error.strerror}; type output_dir=FOLDER"
        ) from None
    records: list[CellRecord] = []
    sinks = AllSinks([HtmlSink(), terminal, *([wandb_sink] if wandb_sink else []), *more_sinks], terminal.say)
    sinks.sweep_started(plan)
    try:
        _run_cells(request, plan, store, sinks, terminal, records)
    except KeyboardInterrupt:
        terminal.interrupted(records, plan)
        return INTERRUPTED
    except OSError as error:  # a full disk: what is finished stays
        terminal.interrupted(records, plan)
        terminal.say(f"The reason: {error}")
        return 1
    sinks.sweep_finished(records)
    return 1 if sinks.failed or any(record.status is Status.FAILED for record in records) else 0


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
    request: SweepRequest,
    plan: Plan,
    store: Store,
    sinks: Sink,
    terminal: TerminalSink,
    records: list[CellRecord],
) -> None:
    cells = (cell for planned in plan.cells for cell in (planned.cell, planned.reference))
    if any(cell.numerics.deterministic and cell.device == "cuda" for cell in cells):
        # torch reads it once, at the first matrix product of the process, which may be another cell's
        from sweeper.models.flags import CUBLAS_WORKSPACE_CONFIG, DETERMINISTIC_WORKSPACE

        os.environ.setdefault(CUBLAS_WORKSPACE_CONFIG, DETERMINISTIC_WORKSPACE)
    from sweeper.sweep.runner import Runner  # torch and transformers: only once there is something to run

    settings = request.settings
    runner = Runner(
        plan.environment,
        latency_repeats=settings.latency_repeats,
        verdict=settings.verdict,
        weights=settings.weights,
        shared=_shared_references(plan) if settings.weights == "resident" else (),
        say=terminal.say,
        progress=terminal.texts_done,
    )
    with _imports_not_collected():
        for planned in plan.cells:
            record = store.finished(planned.cell_id, judged=settings.verdict)
            if record is not None:
                terminal.cell_skipped(record)
            else:
                terminal.cell_started(planned)
                record, modules = runner.run(planned)
                store.write(record, modules)
                sinks.cell_finished(record, modules)
            records.append(record)


@contextlib.contextmanager
def _imports_not_collected() -> Iterator[None]:
    """Python's garbage collector would look through half a million objects of torch and transformers again and again,
    0.5 s each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _shared_references(plan: Plan) -> frozenset[str]:
    """Those that several cells name."""
    named = Counter(planned.reference_id for planned in plan.cells if planned.unsupported is None)
    return frozenset(reference for reference, cells in named.items() if cells > 1)


def _description(request: SweepRequest, plan: Plan) -> SweepDescription:
    pairs = (PlannedIds(cell_id=cell.cell_id, reference_id=cell.reference_id) for cell in plan.cells)
    return SweepDescription(grid=plan.grid, sweep=plan.sweep, config=request.config, cells=tuple(pairs))
