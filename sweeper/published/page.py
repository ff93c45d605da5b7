"""`python -m sweeper published FILE.md SWEEP [SWEEP ...]`: a report's page, from sweeps' files alone."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sweeper.config import parse
from sweeper.errors import ConfigError
from sweeper.published.layers_svg import layers_svg
from sweeper.published.lookup import compare_with_published
from sweeper.published.markdown import report_markdown
from sweeper.published.report import Report
from sweeper.records.sweep import Sweep


def main() -> None:
    """Exit code 0, or 2 with one line on what was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m sweeper published",
        description="Writes the page of a report, and the picture of its layers beside it as FILE_layers.svg.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.md")
    parser.add_argument(
        "sweeps", type=Path, nargs="+", metavar="SWEEP", help="folders; the first was run with reported=NAME"
    )
    arguments = parser.parse_args()
    try:
        for path in write_page(arguments.file, arguments.sweeps):
            print(path)
    except (ConfigError, OSError) as error:
        print(f"sweeper.published.page: {error}", file=sys.stderr)
        sys.exit(2)


def write_page(file: Path, folders: Sequence[Path]) -> list[Path]:
    """Writes the page and, where the report has tables over layers, the picture. Returns what was written.

    Raises:
        ConfigError: a folder is no sweep, or the first one was run without `reported`.
    """
    sweeps = [Sweep.read(folder) for folder in folders]
    given = sweeps[0].description.config.get("reported")
    if given is None:
        raise ConfigError(f"{folders[0]}: run without published figures; run it again with reported=NAME")
    compared = compare_with_published(parse(Report, given, "reported"), sweeps[0])
    svg = layers_svg(compared)
    picture = file.with_name(f"{file.stem}_layers.svg")
    command = shlex.join(["python", "-m", "sweeper", "published", str(file), *map(str, folders)])
    text = report_markdown(compared, sweeps, command, None if svg is None else picture.name)
    file.write_text(text, encoding="utf-8")
    if svg is None:
        return [file]
    picture.write_text(svg, encoding="utf-8")
    return [file, picture]
