"""The page of a report, from sweeps' files alone."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from sweeper.config import parse
from sweeper.errors import ConfigError
from sweeper.published.layers_svg import layers_svg
from sweeper.published.lookup import compare_with_published
from sweeper.published.markdown import report_markdown
from sweeper.published.report import Report
from sweeper.records.sweep import Sweep


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
