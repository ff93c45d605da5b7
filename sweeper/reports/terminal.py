"""The tables of a sweep and of a cell, as a terminal shows them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import zip_longest

from rich import box
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import PAGE_FILE
from sweeper.records.sweep import Sweep, short_ids
from sweeper.reports.cell import Section, sections
from sweeper.reports.cells_table import (
    FIGURE_HEADINGS,
    LEGEND,
    CellsTable,
    cells_table,
    output_name,
    reasons,
    summary,
)
from sweeper.reports.origin import origins

STYLES = {"ok": "", "reference": "dim", "failed": "bold red", "unsupported": "dim"}
DROPPED_FIRST = ("top-1", "mean |Δ|", "KL", "state", "starts at", "equal")  # where the terminal is too narrow for all
DROPPED_IN_SECTIONS = ("type", "SQNR dB", "rel. L2", "mean |Δ|", "cosine")
GAP = 2  # spaces between columns
PIPE_WIDTH = 200  # a table in a file or a pipe is read with a pager, not wrapped


def output_console() -> Console:
    """Standard output; in a file or a pipe wide enough for every column."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def print_sweep(sweep: Sweep, out: Console) -> None:
    """The table of cells, what its columns are, why cells did not run, where differences start."""
    table = cells_table(sweep.records)
    if table.constant:
        _say(out, f"all cells: {table.constant}")
    fitting = _fitting(table, out.width)
    out.print(_drawn(fitting, out.width))
    legend = "; ".join(f"{name}: {what}" for name, what in fitting.legend(output_name(sweep.records)))
    out.print(Text(legend, style="dim"))
    left_out = [heading for heading in LEGEND if heading in table.headings and heading not in fitting.headings]
    if left_out:
        _say(out, f"left out, the terminal is too narrow: {', '.join(left_out)}", "dim")
    for status, reason in reasons(sweep.records):
        _say(out, f"{'' if status is Status.OK else f'{status.value}: '}{reason}", STYLES[status.value])
    starts = origins(sweep)
    if starts:
        _say(out, "\nwhere it starts", "bold")
    for label, where in starts:
        out.print(Text(f"  {label}: {where}"))
    _say(out, f"\n{summary(sweep.records, len(sweep.description.cells))}")
    _say(out, f"results: {sweep.folder}")
    if (page := sweep.folder / PAGE_FILE).exists():
        _say(out, f"page: {page}")
    _say(out, f"one cell in full: python -m sweeper report {sweep.folder} --cell {_most_telling(sweep.records)}", "dim")


def print_cell(record: CellRecord, modules: Sequence[ModuleRecord], out: Console) -> None:
    """Everything that is known of one cell."""
    _say(out, f"cell {record.cell_id}: {record.status.value}", "bold")
    for section in sections(record, modules):
        _say(out, f"\n{section.title}", "bold")
        for note in section.notes:
            out.print(Text(note))
        if section.preformatted is not None:
            _say(out, section.preformatted)
        if section.rows:
            out.print(_drawn_section(section, out.width))


def _say(out: Console, line: str, style: str = "") -> None:
    """One line, as it is: it can be copied, a long one too."""
    out.print(Text(line, style=style), soft_wrap=True)


def _most_telling(records: Sequence[CellRecord]) -> str:
    """The short id of a cell that differs, or of the first."""
    ids = short_ids([record.cell_id for record in records])
    differing = [record for record in records if record.first_divergence is not None]
    return ids[(differing or list(records))[0].cell_id] if records else "ID"


def _fitting(table: CellsTable, width: int) -> CellsTable:
    """Keeps the columns that fit without breaking a word: first some are left out, then the axes share one."""
    candidates = [table.without(DROPPED_FIRST[:count]) for count in range(4)]
    candidates += [table.merged().without(DROPPED_FIRST[:count]) for count in range(len(DROPPED_FIRST) + 1)]
    return next((fits for fits in candidates if sum(_widths(fits, width)) <= _for_words(fits, width)), candidates[-1])


def _widths(table: CellsTable, width: int) -> list[int]:
    return table.widths(_for_words(table, width))


def _for_words(table: CellsTable, width: int) -> int:
    return width - GAP * (len(table.headings) - 1)


def _drawn(cells: CellsTable, console_width: int) -> Table:
    table = _empty_table()
    for heading, width in zip(cells.headings, _widths(cells, console_width), strict=True):
        justify: JustifyMethod = "right" if heading in FIGURE_HEADINGS else "left"
        table.add_column(heading, justify=justify, width=width, overflow="fold")
    for row in cells.rows:
        table.add_row(*map(Text, row), style=STYLES.get(row[-1], "yellow"))
    return table


def _empty_table() -> Table:
    return Table(box=box.SIMPLE_HEAD, header_style="bold", show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0))


def _drawn_section(whole: Section, console_width: int) -> Table:
    candidates = [whole.without(DROPPED_IN_SECTIONS[:count]) for count in range(len(DROPPED_IN_SECTIONS) + 1)]
    section = next((fits for fits in candidates if _natural_width(fits) <= console_width), candidates[-1])
    table = _empty_table()
    for i, heading in enumerate(section.headings):
        table.add_column(heading, justify="left" if i < section.text_columns else "right", overflow="fold")
    for row in section.rows:
        table.add_row(*map(Text, row), style="dim" if "equal" in row else "")
    return table


def _natural_width(section: Section) -> int:
    columns = zip_longest(section.headings, *section.rows, fillvalue="")
    return sum(max(map(len, column)) + GAP for column in columns) - GAP
