"""The tables of a sweep and of a cell, as a terminal shows them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest
from typing import TypeVar

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import PAGE_FILE
from sweeper.records.sweep import Sweep, short_ids
from sweeper.reports.answer import answer, headline, worst
from sweeper.reports.cell import sections
from sweeper.reports.cells_table import FIGURES, GAP, LEGEND, Table, cells_table, output_name, reasons, summary
from sweeper.reports.origin import origins

STYLES = {"ok": "", "reference": "dim", "failed": "bold red", "unsupported": "dim"}
ENDS = {
    "failed": "bold red",
    "semantic": "bold red",
    "policy": "bold yellow",
    "inconclusive": "yellow",
    "rounding": "green",
    "identical": "dim",
    "unsupported": "dim",
}
DROPPED_FIRST = ("top-1", "mean |Δ|", "KL", "state", "starts at", "equal")  # where the terminal is too narrow for all
DROPPED_IN_SECTIONS = ("type", "SQNR dB", "rel. L2", "mean |Δ|", "cosine")
PIPE_WIDTH = 200  # a table in a file or a pipe is read with a pager, not wrapped

Fitting = TypeVar("Fitting", bound=Table)


def output_console() -> Console:
    """Standard output; in a file or a pipe wide enough for every column."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def print_sweep(sweep: Sweep, out: Console) -> None:
    """The table of cells, what its columns are, where differences start, and last the answer in sentences."""
    table = cells_table(sweep.records)
    if table.constant:
        say(out, f"all cells: {table.constant}")
    candidates = [table.without(DROPPED_FIRST[:count]) for count in range(4)]
    candidates += [table.merged().without(DROPPED_FIRST[:count]) for count in range(len(DROPPED_FIRST) + 1)]
    fitting = _fitting(candidates, out.width)
    styles = [STYLES.get(row[-1], "yellow") for row in fitting.rows]
    out.print(drawn(fitting, widths=fitting.widths(out.width), styles=styles))
    legend = "; ".join(f"{name}: {what}" for name, what in fitting.legend(output_name(sweep.records)))
    out.print(Text(legend, style="dim"))
    left_out = [heading for heading in LEGEND if heading in table.headings and heading not in fitting.headings]
    if left_out:
        say(out, f"left out, the terminal is too narrow: {', '.join(left_out)}", "dim")
    for _, reason in (found for found in reasons(sweep.records) if found[0] is Status.OK):
        say(out, reason)
    starts = origins(sweep)
    if starts:
        say(out, "\nwhere it starts", "bold")
    for label, where in starts:
        out.print(Text(f"  {label}: {where}"))
    say(out, f"\n{summary(sweep)}")
    say(out, f"results: {sweep.folder}")
    if (page := sweep.folder / PAGE_FILE).exists():
        say(out, f"page: {page}")
    if (telling := worst(sweep.records)) is not None:
        short = short_ids([record.cell_id for record in sweep.records])[telling.cell_id]
        say(out, f"one cell in full: python -m sweeper report {sweep.folder} --cell {short}", "dim")
    lines = answer(sweep.records, sweep.folder)
    if lines:
        say(out, f"\nthe answer, worst first: {headline(sweep.records)}", "bold")
    for line in lines:
        out.print(
            Text.assemble("  ", (line.end, ENDS.get(line.end, "")), line.text.removeprefix(line.end)), soft_wrap=True
        )


def print_cell(record: CellRecord, modules: Sequence[ModuleRecord], out: Console) -> None:
    """Everything that is known of one cell."""
    say(out, f"cell {record.cell_id}: {record.status.value}", "bold")
    for section in sections(record, modules):
        say(out, f"\n{section.title}", "bold")
        for note in section.notes:
            out.print(Text(note))
        if section.preformatted is not None:
            say(out, section.preformatted)
        if section.rows:
            narrower = [section.without(DROPPED_IN_SECTIONS[:n]) for n in range(len(DROPPED_IN_SECTIONS) + 1)]
            fitting = _fitting(narrower, out.width)
            styles = ["dim" if "equal" in row else "" for row in fitting.rows]
            out.print(drawn(fitting, widths=fitting.widths(out.width), styles=styles))


def say(out: Console, line: str, style: str = "") -> None:
    """Prints one line as it is: it can be copied, a long one too."""
    out.print(Text(line, style=style), soft_wrap=True)


def _fitting(candidates: Sequence[Fitting], width: int) -> Fitting:
    """The first that fits; else the last, the narrowest."""
    return next((table for table in candidates if table.fits(width)), candidates[-1])


def drawn(table: Table, *, widths: Sequence[int] | None = None, styles: Sequence[str] | None = None) -> RichTable:
    """The table for a console.

    Args:
        table: what is drawn.
        widths: of the columns; None leaves them to the console.
        styles: of the rows; None is plain.
    """
    shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False)
    shown.padding = (0, GAP - 1, 0, 0)
    for heading, width in zip_longest(table.headings, widths or ()):
        shown.add_column(heading, justify="right" if heading in FIGURES else "left", width=width, overflow="fold")
    for row, style in zip(table.rows, styles or [""] * len(table.rows), strict=True):
        shown.add_row(*(Text(text, ENDS.get(text, "")) for text in row), style=style)
    return shown
