"""What the user sees: progress on standard error while a sweep runs, one table on standard output at its end."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sweeper.results import CellRecord, ModuleRecord, StateFigures, Status

if TYPE_CHECKING:
    from sweeper.plan import Plan, PlannedCell

STYLES = {Status.OK: "green", Status.FAILED: "bold red", Status.UNSUPPORTED: "dim"}
PIPE_WIDTH = 200  # a table in a file or a pipe is read with a pager, not wrapped


class TerminalSink:
    """Progress and the final table. In a pipe, a line a cell instead of a bar.

    Args:
        out: for the table. err: for progress.
    """

    def __init__(self, out: Console | None = None, err: Console | None = None) -> None:
        self._out = out or Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self._err = err or Console(stderr=True, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._err,
            disable=not self._err.is_terminal,
        )
        self._task = self._progress.add_task("", total=None)
        self._plan: Plan | None = None
        self._started = time.monotonic()

    def sweep_started(self, plan: Plan) -> None:
        self._plan = plan
        self.say(f"{len(plan.cells)} cells -> {plan.folder}")
        self._progress.update(self._task, total=len(plan.cells))
        self._progress.start()

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        self._err.print(line, markup=False, highlight=False)

    def cell_started(self, planned: PlannedCell) -> None:
        self._started = time.monotonic()
        self._progress.update(self._task, description=_label(planned.cell.axes(), self._varying()))

    def cell_skipped(self, record: CellRecord) -> None:
        self._advance(record, "finished before, skipped")

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        outcome = record.status.value if record.reason is None else f"{record.status.value}: {record.reason}"
        self._advance(record, f"{outcome} ({time.monotonic() - self._started:.1f} s)")

    def _advance(self, record: CellRecord, outcome: str) -> None:
        self._progress.advance(self._task)
        if self._progress.disable or record.status is Status.FAILED:
            task = self._progress.tasks[0]
            label = _label(record.axes, self._varying())
            self.say(f"[{int(task.completed)}/{task.total:.0f}] {label}: {outcome}")

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        self._progress.stop()
        assert self._plan is not None, "sweep_started comes first"
        self._out.print(cells_table(records))
        _print_reasons(self._out, records)
        counts = {status: sum(record.status is status for record in records) for status in Status}
        self._out.print(", ".join(f"{count} {status.value}" for status, count in counts.items() if count))
        self._out.print(f"results: {self._plan.folder}", soft_wrap=True, highlight=False)

    def interrupted(self, records: Sequence[CellRecord], plan: Plan) -> None:
        self._progress.stop()
        self.say(
            f"Stopped. {len(records)} of {len(plan.cells)} cells are finished and kept in {plan.folder}; "
            "the same command goes on from there."
        )

    def _varying(self) -> list[str]:
        return varying_axes([cell.cell.axes() for cell in self._plan.cells]) if self._plan else []


def varying_axes(axes: Sequence[dict[str, str | bool]]) -> list[str]:
    """The axes that do not hold one value in all cells; of a single cell, those that name it best."""
    if len(axes) < 2:
        return ["checkpoint", "load_strategy", "dtype", "attention", "layout"]
    return [axis for axis in axes[0] if len({row[axis] for row in axes}) > 1]


def cells_table(records: Sequence[CellRecord]) -> Table:
    """A row a cell: the axes that vary, the figures that matter, the status."""
    axes = varying_axes([record.axes for record in records])
    table = Table(title=_constants(records, axes), title_justify="left", title_style="", header_style="bold")
    for axis in axes:
        table.add_column(axis, overflow="fold")
    for heading in ("max |Δ|", "mean |Δ|", "equal", "cosine", "KL", "top-1"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    table.add_column("starts at", overflow="fold")
    table.add_column("status", no_wrap=True)
    for record in records:
        table.add_row(*(Text(str(record.axes[axis])) for axis in axes), *_figures(record), _status(record))
    return table


def _constants(records: Sequence[CellRecord], varying: Sequence[str]) -> Text:
    if not records:
        return Text("no cells")
    axes = records[0].axes
    same = ", ".join(f"{axis}={value}" for axis, value in axes.items() if axis not in varying)
    return Text(f"all cells: {same}" if same else "")


def _figures(record: CellRecord) -> list[Text]:
    output, language = record.output, record.language
    if output is None:
        return [Text("")] * 8
    cosine = min((text.embedding_cosine for text in record.texts), default=math.nan)
    nan = f" NaN×{output.candidate_nan}" if output.candidate_nan else ""
    return [
        Text(number(output.max_abs) + nan),
        Text(number(output.mean_abs)),
        Text(fraction(output.equal_fraction)),
        Text(f"{cosine:.6f}"),
        Text(number(language.kl_mean) if language else ""),
        Text(fraction(language.top1_agreement) if language else ""),
        Text(state_summary(record.state)),
        Text(record.first_divergence or "nowhere"),
    ]


def state_summary(state: StateFigures | None) -> str:
    """`same`, or what differs: a buffer by its name, parameters by their number; a mere dtype as `dtype`."""
    if state is None:
        return ""
    values = [entry for entry in state.differing if not entry.values_equal]
    if not values:
        return "dtype" if state.differing else "same"
    parameters = sum(entry.kind == "parameter" for entry in values)
    buffers = [entry.name.split(".", 1)[-1] for entry in values if entry.kind != "parameter"]
    named = buffers if len(buffers) <= 2 else [f"{len(buffers)} buffers"]
    return ", ".join([f"{parameters} parameters"] * bool(parameters) + named)


def _status(record: CellRecord) -> Text:
    reference = record.status is Status.OK and record.cell_id == record.reference_id
    return Text("reference" if reference else record.status.value, style=STYLES[record.status])


def _print_reasons(out: Console, records: Sequence[CellRecord]) -> None:
    """Why cells did not run: each reason once, with how many cells it stopped."""
    for status in (Status.UNSUPPORTED, Status.FAILED):
        reasons = [record.reason or "" for record in records if record.status is status]
        for reason in dict.fromkeys(reasons):
            text = Text(f"{status.value} ×{reasons.count(reason)}: {reason}", style=STYLES[status])
            out.print(text, soft_wrap=True)


def number(value: float) -> str:
    """Four significant digits, `0` for nothing."""
    return "0" if value == 0 else f"{value:.4g}"


def fraction(value: float) -> str:
    """A share with four decimals; `1` and `0` only when it is exactly that."""
    return f"{value:.0f}" if value in (0.0, 1.0) else f"{min(max(value, 0.0001), 0.9999):.4f}"


def _label(axes: dict[str, str | bool], varying: Sequence[str]) -> str:
    return " ".join(str(axes[axis]) if not isinstance(axes[axis], bool) else f"{axis}={axes[axis]}" for axis in varying)
