"""The tables of a sweep and of a cell, as a terminal shows them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import TypeVar

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from sweeper.errors import printable
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import PAGE_FILE
from sweeper.records.sweep import Sweep, short_ids
from sweeper.reports.answer import answer, headline, worst, worst_first
from sweeper.reports.cell import sections
from sweeper.reports.cells_table import (
    FIGURES,
    GAP,
    LEGEND,
    CellsTable,
    Table,
    cells_table,
    output_name,
    reasons,
    summary,
)
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
COMMAND = "python -m sweeper "
MOST_ROWS = 200  # of cells at the end of a sweep in a terminal, which keeps no more lines; and that are drawn at once
PIPE_WIDTH = 200  # a table in a file or a pipe is read with a pager, not wrapped

Fitting = TypeVar("Fitting", bound=Table)


class SteadyConsole(Console):
    """A console whose reader may go away: what ran is on disk, and its exit code stands.

    Attributes:
        wraps: sentences are wrapped; in a pipe of no width that was asked for each is a line, as tools want it.
    """

    wraps = True

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


def output_console() -> Console:
    """Standard output; in a file or a pipe as wide as COLUMNS says, or wide enough for every column."""
    asked = os.environ.get("COLUMNS", "")
    known = int(asked) if asked.isdecimal() and int(asked) else None
    terminal = sys.stdout.isatty()
    out = SteadyConsole(width=known if known or terminal else PIPE_WIDTH, highlight=False)
    out.wraps = terminal or known is not None
    return out


def print_sweep(sweep: Sweep, out: Console, *, most_rows: int | None = None) -> None:
    """The table of cells, what its columns are, where differences start, and last the answer in sentences.

    Args:
        most_rows: of more cells than that only the worst have a row, worst first; None: a row a cell, in their order.
    """
    table = cells_table(sweep.records)
    if most_rows is not None:
        table = _worst_rows(table, sweep.records, most_rows)
    if table.constant:
        sentence(out, f"all cells: {table.constant}")
    candidates = [table.without(DROPPED_FIRST[:count]) for count in range(4)]
    candidates += [table.merged().without(DROPPED_FIRST[:count]) for count in range(len(DROPPED_FIRST) + 1)]
    fitting, widths = _fitting(candidates, out.width)
    for part in _parts(fitting, widths):
        out.print(part, crop=False)
    if len(table.rows) < len(sweep.records):
        which = f"the {len(table.rows)} worst of {len(sweep.records)} cells, worst first"
        sentence(out, f"{which}; all of them: python -m sweeper report {sweep.folder}")
    legend = "; ".join(f"{name}: {what}" for name, what in fitting.legend(output_name(sweep.records)))
    sentence(out, legend, "dim")
    left_out = [heading for heading in LEGEND if heading in table.headings and heading not in fitting.headings]
    if left_out:
        sentence(out, f"left out, the terminal is too narrow: {', '.join(left_out)}", "dim")
    for _, reason in (found for found in reasons(sweep.records) if found[0] is Status.OK):
        sentence(out, reason)
    starts = origins(sweep)
    if starts:
        say(out, "\nwhere it starts", "bold")
    for label, where in starts:
        sentence(out, f"{label}: {where}", indent=2)
    out.print()
    sentence(out, summary(sweep))
    say(out, f"results: {sweep.folder}")
    if (page := sweep.folder / PAGE_FILE).exists():
        say(out, f"page: {page}")
    if (telling := worst(sweep.records)) is not None:
        short = short_ids([record.cell_id for record in sweep.records])[telling.cell_id]
        sentence(out, f"one cell in full: python -m sweeper report {sweep.folder} --cell {short}", "dim")
    lines = answer(sweep.records, sweep.folder)
    if lines:
        out.print()
        sentence(out, f"the answer, worst first: {headline(sweep.records)}", "bold")
    for line in lines:
        rest = printable(line.text.removeprefix(line.end))
        sentence(out, Text.assemble((line.end, ENDS.get(line.end, "")), rest), indent=2)


def _worst_rows(table: CellsTable, records: Sequence[CellRecord], most: int) -> CellsTable:
    """The table; of more rows than `most` those of the worst cells, worst first."""
    if len(records) <= most:
        return table
    rows = {record.cell_id: row for record, row in zip(records, table.rows, strict=True)}
    return replace(table, rows=tuple(rows[record.cell_id] for record in worst_first(records)[:most]))


def _parts(table: CellsTable, widths: Sequence[int]) -> Iterator[RichTable]:
    """The table as several, one below the other: rich keeps some KiB a row of what it draws at once."""
    for start in range(0, len(table.rows) or 1, MOST_ROWS):
        rows = table.rows[start : start + MOST_ROWS]
        styles = [STYLES.get(row[-1], "yellow") for row in rows]
        yield drawn(replace(table, rows=rows), widths=widths, styles=styles, header=start == 0)


def print_cell(record: CellRecord, modules: Sequence[ModuleRecord], out: Console) -> None:
    """Everything that is known of one cell."""
    say(out, f"cell {record.cell_id}: {record.status.value}", "bold")
    for section in sections(record, modules):
        say(out, f"\n{section.title}", "bold")
        for note in section.notes:
            sentence(out, note)
        if section.preformatted is not None:
            say(out, section.preformatted)
        if section.rows:
            narrower = [section.without(DROPPED_IN_SECTIONS[:n]) for n in range(len(DROPPED_IN_SECTIONS) + 1)]
            fitting, widths = _fitting(narrower, out.width, whole_headings=False)
            styles = ["dim" if "equal" in row else "" for row in fitting.rows]
            out.print(drawn(fitting, widths=widths, styles=styles), crop=False)


def print_table(table: CellsTable, out: Console) -> None:
    """A table of cells, with all axes in one column where it is too wide otherwise."""
    fitting, widths = _fitting((table, table.merged()), out.width)
    out.print(drawn(fitting, widths=widths), crop=False)


def say(out: Console, line: str, style: str = "") -> None:
    """Prints one line as it is: it can be copied, a long one too."""
    out.print(Text(printable(line), style=style), soft_wrap=True)


def sentence(out: Console, what: str | Text, style: str = "", indent: int = 0) -> None:
    """Prints prose, wrapped between words. A command in it that does not fit stays whole on a line of its own.

    Args:
        indent: of the first line; what follows is indented by two more.
    """
    text = what if isinstance(what, Text) else Text(printable(what), style=style)
    if not getattr(out, "wraps", True):
        out.print(Text(" " * indent) + text, soft_wrap=True)
        return
    at = text.plain.find(COMMAND)
    command = None
    if at > 0 and len(text.plain) + indent + 2 > out.width:
        text, command = text[:at], text[at:]
        text.rstrip()
    for number, line in enumerate(text.divide(_line_starts(text.plain, max(20, out.width - indent - 2)))):
        line.rstrip()
        out.print(Text(" " * (indent + 2 * (number > 0))) + line, soft_wrap=True)
    if command is not None:
        out.print(Text(" " * (indent + 2)) + command, soft_wrap=True)


def _line_starts(text: str, width: int) -> list[int]:
    """Where new lines begin, so that none is wider unless a word is: rich would break that word."""
    starts, used = [], 0
    for word in re.finditer(r"\S+\s*|\s+", text):
        if used and used + cell_len(word.group().rstrip()) > width:
            starts.append(word.start())
            used = 0
        used += cell_len(word.group())
    return starts


def _fitting(candidates: Sequence[Fitting], width: int, *, whole_headings: bool = True) -> tuple[Fitting, list[int]]:
    """The first that fits, and its widths; else the narrowest, with its last columns left out until it does.

    Args:
        whole_headings: rather another table than a heading on several lines.
    """
    tries = [(table, whole) for whole in (True, False) for table in candidates]
    if not whole_headings:
        tries = [(table, whole) for table in candidates for whole in (True, False)]
    for table, whole in tries:
        if table.fits(width, whole_headings=whole):
            return table, table.widths(width, whole_headings=whole)
    table = candidates[-1]
    while len(table.headings) > 2 and not table.fits(width, whole_headings=False):
        table = table.without(table.headings[-1:])
    return table, table.widths(width, whole_headings=False)


def drawn(
    table: Table, *, widths: Sequence[int] | None = None, styles: Sequence[str] | None = None, header: bool = True
) -> RichTable:
    """The table for a console.

    Args:
        table: what is drawn.
        widths: of the columns; None leaves them to the console.
        styles: of the rows; None is plain.
        header: the headings stand above the rows.
    """
    shown = RichTable(box=box.SIMPLE_HEAD, header_style="bold", show_header=header, show_edge=False, pad_edge=False)
    shown.padding = (0, GAP - 1, 0, 0)
    for heading, width in zip_longest(table.headings, widths or ()):
        shown.add_column(heading, justify="right" if heading in FIGURES else "left", width=width, overflow="fold")
    for row, style in zip(table.rows, styles or [""] * len(table.rows), strict=True):
        shown.add_row(*(Text(printable(text), ENDS.get(text, "")) for text in row), style=style)
    return shown
