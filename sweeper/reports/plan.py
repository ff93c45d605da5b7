"""`dry_run=true`: prints what a sweep would do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

from rich.console import Console

from sweeper.planning.plan import Plan, PlannedCell
from sweeper.records.sweep import varying_axes
from sweeper.reports.cells_table import CellsTable
from sweeper.reports.terminal import output_console, print_table, say, sentence

ROWS = 200  # more than anyone reads


def print_plan(plan: Plan, console: Console | None = None, finished: Mapping[str, str] = MappingProxyType({})) -> None:
    """Prints the cells with their references, what is finished, unsupported and excluded, and the folder.

    Args:
        finished: cell id -> where, in words, of the cells that need not run.
    """
    out = console or output_console()
    labels = [planned.cell.axes() for planned in plan.cells]
    varying = varying_axes(labels)
    sentence(
        out, "all cells: " + ", ".join(f"{axis}={label}" for axis, label in labels[0].items() if axis not in varying)
    )
    rows = [
        (planned.cell_id, *(str(axes[axis]) for axis in varying), *_reference_and_status(planned, finished))
        for planned, axes in zip(plan.cells[:ROWS], labels, strict=False)
    ]
    headings = ("cell", *varying, "reference", "status")
    print_table(CellsTable(headings, tuple(rows), constant="", axes=tuple(varying)), out)
    if len(plan.cells) > ROWS:
        say(out, f"... and {len(plan.cells) - ROWS} more cells")
    unsupported = Counter(planned.unsupported for planned in plan.cells if planned.unsupported)
    for reason, count in unsupported.items():
        sentence(out, f"unsupported, {count} cells: {reason}")
    for dropped in plan.dropped:
        sentence(out, dropped)
    for rule, count in Counter(str(rule) for _, rule in plan.excluded).items():
        sentence(out, f"excluded, {count} combinations: {rule}")
    done = sum(planned.cell_id in finished for planned in plan.cells if not planned.unsupported)
    run = len(plan.cells) - unsupported.total() - done
    sentence(
        out,
        f"{run} cells to run, {f'{done} finished, ' if done else ''}{unsupported.total()} unsupported, "
        f"{len(plan.excluded)} excluded; {plan.reference_count} references; weights read {plan.weight_reads} times",
    )
    say(out, f"folder: {plan.folder}")


def _reference_and_status(planned: PlannedCell, finished: Mapping[str, str]) -> tuple[str, str]:
    """What the reference has other than the candidate, and whether that can run."""
    axes, reference = planned.cell.axes(), planned.reference.axes()
    differing = [f"{axis}={label}" for axis, label in reference.items() if label != axes[axis]]
    if planned.recording is not None:
        differing = [str(planned.recording)]
    return ", ".join(differing) or "itself", "unsupported" if planned.unsupported else finished.get(
        planned.cell_id, "run"
    )
