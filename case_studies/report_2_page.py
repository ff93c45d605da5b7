"""`python -m case_studies.report_2_page FILE.md SWEEP [SWEEP ...]`: report 2's page, with what each fix-up changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from case_studies.fixup_tables import fixup_rows, pooling_rows, text_rows
from case_studies.fixups import load_fixups
from sweeper.errors import ConfigError
from sweeper.published.markdown import table
from sweeper.published.page import write_page
from sweeper.records.sweep import Sweep

FIXUP_HEADINGS = ("fix-up", "proposed in", "attention", "max |Δ|", "mean |Δ|", "equal", "cosine")
TEXT_HEADINGS = ("dtype", "attention", "positions implicit", "positions explicit", "positions explicit, cache on")


def main() -> int:
    """Writes the page. Returns the exit code: 0, or 2 with one line on what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m case_studies.report_2_page", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.md")
    parser.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="the first was run with reported=...")
    asked = parser.parse_args()
    try:
        print(*write_report_2(asked.file, asked.sweeps), sep="\n")
    except ConfigError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def write_report_2(file: Path, folders: Sequence[Path]) -> list[Path]:
    """Writes the page of report 2 from finished sweeps. Returns what was written."""
    return write_page(file, folders, made_by=("python", "-m", "case_studies.report_2_page"), sections=sections)


def sections(sweeps: Sequence[Sweep]) -> Iterator[str]:
    """What each fix-up changed, the padded text in every dtype, and pooling by count where it was run."""
    yield from ("## What each fix-up changed", "")
    yield "Each alone, on the whole output over real tokens; `none` is the report's own pair. What no section"
    yield "proposes is ours. Every cell runs in eval mode and compares aligned tokens: the rows `without` them were"
    yield "measured by `python -m case_studies.measure_fixups`. Cosine: the least of a text's, or of all tokens where"
    yield "it says so."
    yield ""
    yield from table(FIXUP_HEADINGS, fixup_rows(load_fixups(), sweeps))
    yield from ("## The second text, padded against packed", "", "max |Δ| / equal / cosine of its output.", "")
    yield from table(TEXT_HEADINGS, text_rows(sweeps))
    pooled = list(pooling_rows(sweeps))
    if pooled:
        yield from ("## Pooling by count", "", "Cosine of each text's embedding with that of the text alone.", "")
        yield from table(("layout", "pooling", "cosine of each text"), pooled)


if __name__ == "__main__":
    sys.exit(main())
