"""`launcher=inline`: this process runs all cells, one after another."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

from sweeper.launchers.launcher import Finished, Lost, MakeWorker, Unit, Work, Worker, plan_here
from sweeper.launchers.processes import ProcessLauncher
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan
from sweeper.sinks.sink import Sink


class InlineLauncher:
    """Runs everything with one worker, which keeps models and references from cell to cell.

    A cell that ended processes before gets one of its own. Where a device refuses everything that this process asks
    for, the rest gets one.
    """

    def plan(self, request: SweepRequest) -> Plan:
        return plan_here(request)

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished | Lost]:
        worker: Worker | None = None
        with _imports_not_collected():
            while unit := work.take():
                for place, planned in enumerate(unit.cells):
                    if planned.cell_id in unit.risky:
                        sink.said(f"{planned.cell_id} ended the process that ran it before: it gets one of its own")
                        alone = replace(unit, cells=(planned,))
                        yield from ProcessLauncher([{}]).launch(_Then([alone]), make_worker, sink)
                        continue
                    if worker is None:
                        worker = make_worker(sink)
                        gc.freeze()  # what that imported
                    sink.cell_started(planned)
                    yield Finished(*worker.run(planned, () if unit.careful else unit.cells[place + 1 :]))
                    if not worker.usable:
                        sink.said("the device refuses all that this process asks for: a new process runs the rest")
                        left = [replace(unit, cells=cells)] if (cells := unit.cells[place + 1 :]) else []
                        yield from ProcessLauncher([{}]).launch(_Then(left, work), make_worker, sink)
                        return

    def close(self) -> None:
        """Nothing outlives a launch."""


class _Then:
    """Some units, and then what other work gives."""

    def __init__(self, units: Sequence[Unit], work: Work | None = None) -> None:
        self._units = list(units)
        self._work = work

    def take(self, like: Unit | None = None, beside: Sequence[Unit] = ()) -> Unit | None:
        if self._units:
            return self._units.pop(0)
        return None if self._work is None else self._work.take(like, beside)


@contextlib.contextmanager
def _imports_not_collected() -> Iterator[None]:
    """Python's garbage collector would look through half a million objects of torch and transformers again and again,
    0.5 s each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
