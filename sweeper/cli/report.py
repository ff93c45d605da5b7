"""`sweeper report SWEEP_FOLDER`: shows a sweep again, from its files alone. Imports no torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sweeper.cli.arguments import Arguments
from sweeper.errors import ConfigError
from sweeper.records.sweep import Sweep


def main(arguments: Sequence[str]) -> int:
    """Shows or writes what the arguments ask for; returns the exit code.

    Raises:
        ConfigError: no such sweep, or no such cell.
    """
    asked = _parser().parse_args(arguments)
    if asked.schema:
        from sweeper.cli.schema import schema_markdown

        print(schema_markdown(), end="")
        return 0
    if asked.sweep is None:
        raise ConfigError("which sweep? Give its folder: outputs/<grid>/<sweep>")
    sweep = Sweep.read(asked.sweep)
    for line in sweep.damaged:
        print(f"sweeper report: {line}", file=sys.stderr)
    if asked.markdown is not None:
        from sweeper.reports.markdown import markdown

        _write(asked.markdown, markdown(sweep))
    if asked.html is not None:
        from sweeper.records.store import PAGE_FILE
        from sweeper.reports.page.page import page

        _write(asked.html or sweep.folder / PAGE_FILE, page(sweep))
    for kind in ("junit", "json", "csv"):
        if (file := getattr(asked, kind)) is not None:
            from sweeper.reports.files import as_csv, as_json, junit

            _write(file, {"junit": junit, "json": as_json, "csv": as_csv}[kind](sweep))
    if asked.figures is not None:
        from sweeper.reports.figures import write_figures

        for path in write_figures(sweep, asked.figures, sweep.find(asked.cell).cell_id if asked.cell else ""):
            print(path)
        return 0
    written = (asked.markdown, asked.html, asked.junit, asked.json, asked.csv)
    if asked.cell is not None or all(file is None for file in written):
        _show(sweep, asked.cell)
    return 0


def _show(sweep: Sweep, cell: str | None) -> None:
    from sweeper.reports.terminal import output_console, print_cell, print_sweep, say

    out = output_console()
    if cell is None:
        print_sweep(sweep, out)
        return
    record = sweep.find(cell)
    if (failed := sweep.failure(record.cell_id)) is not None:
        print_cell(failed, (), out)
        say(out, "\nAn earlier attempt was measured, and stays:\n")
    print_cell(record, sweep.modules(record.cell_id), out)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    print(path)


def _parser() -> Arguments:
    parser = Arguments(
        prog="sweeper report",
        description="Shows a finished sweep again: its table of cells, or what the options ask for.",
    )
    parser.add_argument("sweep", metavar="SWEEP_FOLDER", type=Path, nargs="?", help="outputs/<grid>/<sweep>")
    parser.add_argument("--cell", metavar="ID", help="everything about one cell; the first digits of its id are enough")
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table of cells as GitHub Markdown")
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=Path,
        nargs="?",
        const=False,
        help="write the page; without FILE to SWEEP_FOLDER/index.html",
    )
    parser.add_argument(
        "--junit", metavar="FILE", type=Path, help="write JUnit XML: what the sweep's fail_on names fails"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the answer and a flat object a cell as JSON")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write a row a cell as CSV")
    parser.add_argument(
        "--figures",
        metavar="DIR",
        type=Path,
        help="write the page's figures as SVG and PNG, with --cell the maps of that cell; needs Chromium or Chrome",
    )
    parser.add_argument("--schema", action="store_true", help="print the schema of the files as Markdown")
    return parser
