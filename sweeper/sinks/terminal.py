"""What the user sees: progress on standard error while a sweep runs, one table on standard output at its end."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from sweeper.errors import printable
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.sweep import short_label, varying_axes
from sweeper.reports.terminal import MOST_ROWS, SteadyConsole, output_console, print_sweep
from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan, PlannedCell


class TerminalSink(Sink):
    """Progress and the final table. In a pipe, a line a cell instead of a bar.

    Args:
        out: for the table. err: for progress.
    """

    def __init__(self, out: Console | None = None, err: Console | None = None) -> None:
        self._out = out or output_console()
        self._err = err or SteadyConsole(stderr=True, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._err,
            disable=not self._err.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._texts = self._progress.add_task("  texts", total=None, visible=False)
        self._varying: list[str] = []
        self._started: dict[str, float] = {}  # cell id -> when; several run at once where there are several workers

    def sweep_started(self, plan: Plan) -> None:
        super().sweep_started(plan)
        self._varying = varying_axes([planned.cell.axes() for planned in plan.cells])
        for sentence in plan.dropped:
            self.said(sentence)
        self.said(f"{len(plan.cells)} cells -> {plan.folder}")
        self._progress.update(self._task, total=len(plan.cells))
        self._progress.start()

    def said(self, line: str) -> None:
        """Prints a line above the bar."""
        self._err.print(printable(line), markup=False, highlight=False)

    def cell_started(self, planned: PlannedCell) -> None:
        self._started[planned.cell_id] = time.monotonic()
        self._progress.update(self._task, description=short_label(planned.cell.axes(), self._varying))

    def texts_done(self, done: int, texts: int) -> None:
        """A second bar, while a cell or its reference runs several batches."""
        self._progress.update(self._texts, completed=done, total=texts, visible=done < texts)

    def cell_skipped(self, record: CellRecord) -> None:
        self._advance(record, "finished before, skipped")

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        outcome = record.status.value if record.reason is None else f"{record.status.value}: {record.reason}"
        started = self._started.pop(record.cell_id, None)
        took = "" if started is None else f" ({time.monotonic() - started:.1f} s)"
        self._advance(record, f"{outcome}{took}")

    def _advance(self, record: CellRecord, outcome: str) -> None:
        self._progress.advance(self._task)
        if self._progress.disable or record.status is Status.FAILED:
            task = self._progress.tasks[0]
            label = short_label(record.axes, self._varying)
            self.said(f"[{int(task.completed)}/{task.total:.0f}] {label}: {outcome}")

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        self._progress.stop()
        print_sweep(self.swept, self._out, most_rows=MOST_ROWS if self._out.is_terminal else None)

    def interrupted(self, records: Sequence[CellRecord]) -> None:
        self._progress.stop()
        failed = sum(record.status is Status.FAILED for record in records)
        self.said(
            f"Stopped. {len(records) - failed} of {len(self.plan.cells)} cells are finished"
            f"{f', {failed} failed' if failed else ''}, and kept in {self.plan.folder}; "
            "the same command goes on from there."
        )
