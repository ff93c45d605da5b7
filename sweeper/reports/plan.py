"""`dry_run=true`: prints what a sweep would do."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from sweeper.planning.plan import Plan, PlannedCell
from sweeper.records.sweep import varying_axes
from sweeper.reports.terminal import PIPE_WIDTH

ROWS = 200  # more than anyone reads


def print_plan(plan: Plan, console: Console | None = None) -> None:
    """Prints the cells with their references, what is shared, unsupported and excluded, and the folder."""
    console = console or Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    labels = [planned.cell.axes() for planned in plan.cells]
    varying = varying_axes(labels)
    say("all cells: " + ", ".join(f"{axis}={label}" for axis, label in labels[0].items() if axis not in varying))
    console.print(_table(plan.cells[:ROWS], varying))
    if len(plan.cells) > ROWS:
        say(f"... and {len(plan.cells) - ROWS} more cells")
    unsupported = Counter(planned.unsupported for planned in plan.cells if planned.unsupported)
    for reason, count in unsupported.items():
        say(f"unsupported, {count} cells: {reason}")
    for sentence in plan.dropped:
        say(sentence)
    for rule, count in Counter(str(rule) for _, rule in plan.excluded).items():
        say(f"excluded, {count} combinations: {rule}")
    say(
        f"{len(plan.cells) - unsupported.total()} cells to run, {unsupported.total()} unsupported, "
        f"{len(plan.excluded)} excluded; {plan.reference_count} references; "
        f"weights read {plan.weight_reads} times"
    )
    say(f"folder: {plan.folder}")


def _table(cells: Sequence[PlannedCell], varying: Sequence[str]) -> Table:
    table = Table(header_style="bold")
    for heading in ("cell", *varying, "reference", "status"):
        table.add_column(heading, overflow="fold")
    for planned in cells:
        axes = planned.cell.axes()
        table.add_row(
            planned.cell_id,
            *(Text(str(axes[axis])) for axis in varying),
            Text(_reference(planned)),
            Text("unsupported" if planned.unsupported else "run"),
        )
    return table


def _reference(planned: PlannedCell) -> str:
    """The reference, as what it has other than the candidate."""
    axes, reference = planned.cell.axes(), planned.reference.axes()
    differing = [f"{axis}={label}" for axis, label in reference.items() if label != axes[axis]]
    return ", ".join(differing) or "itself"
