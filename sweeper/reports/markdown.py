"""The table of cells as GitHub Markdown, under the command, the date and the versions that made it."""

from __future__ import annotations

from pathlib import Path

from sweeper.errors import printable
from sweeper.records.cell import Status
from sweeper.records.sweep import Sweep
from sweeper.reports.answer import answer
from sweeper.reports.cells_table import FIGURES, Table, cells_table, made_on, output_name, reasons, summary
from sweeper.reports.origin import origins


def markdown(sweep: Sweep) -> str:
    """A page for GitHub: how it was made, the answer in sentences, the table, where differences start."""
    table = cells_table(sweep.records)
    lines = [f"# {escaped(sweep.description.grid)}", "", "```", sweep.command, "```", ""]
    lines += [f"- {escaped(line)}" for line in made_on(sweep.records)]
    lines += [f"- all cells: {escaped(table.constant)}", ""]
    lines += [escaped(summary(sweep)) + ".", ""]
    folder = Path("outputs", sweep.description.grid, sweep.description.sweep)  # not where it lies on this machine
    lines += [*(f"- {escaped(line.text)}" for line in answer(sweep.records, folder)), ""]
    legend = table.legend(output_name(sweep.records))
    lines += [*table_lines(table), "; ".join(f"*{escaped(name)}*: {what}" for name, what in legend) + ".", ""]
    without_effect = [reason for status, reason in reasons(sweep.records) if status is Status.OK]
    lines += [*(f"- {escaped(reason)}" for reason in without_effect), *[""] * bool(without_effect)]
    starts = origins(sweep)
    lines += ["Where it starts, cells of the reference's dtype:", ""] if starts else []
    lines += [f"- {escaped(label)}: {escaped(where)}" for label, where in starts]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown and HTML leave as it is, and a terminal."""
    text = printable(text)
    for character in "\\`*<>[]|":
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def table_lines(table: Table) -> list[str]:
    """A table and an empty line; nothing without rows."""
    if not table.rows:
        return []
    align = ["---:" if heading in FIGURES else "---" for heading in table.headings]
    texts = [list(map(escaped, row)) for row in (table.headings, *table.rows)]
    return [*(f"| {' | '.join(row)} |" for row in (texts[0], align, *texts[1:])), ""]
