"""The page of a publication, from sweeps' files alone."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sweeper.config import parse
from sweeper.errors import ConfigError
from sweeper.published.layers_svg import layers_svg
from sweeper.published.lookup import compare_with_published
from sweeper.published.markdown import page_markdown
from sweeper.published.publication import Publication
from sweeper.records.sweep import Sweep

Sections = Callable[[Sequence[Sweep]], Iterable[str]]
"""Lines of Markdown that a page has of its own, from the sweeps that it is made of."""


def write_page(
    file: Path,
    folders: Sequence[Path],
    *,
    made_by: Sequence[str] = ("python", "-m", "sweeper", "published"),
    sections: Sections = lambda _: (),
) -> list[Path]:
    """Writes the page and, where there are published tables over layers, the picture. Returns what was written.

    Args:
        file: of the page; the picture lies beside it.
        folders: of sweeps; the published figures are those that the first one was run with.
        made_by: the command without its arguments, which the page shows.
        sections: of a page that has more to say than figures.

    Raises:
        ConfigError: a folder is no sweep, or the first one was run without `reported`.
    """
    sweeps = [Sweep.read(folder) for folder in folders]
    given = sweeps[0].description.config.get("reported")
    if given is None:
        raise ConfigError(f"{folders[0]}: run without published figures; run it again with reported=NAME")
    compared = compare_with_published(parse(Publication, given, "reported"), sweeps[0])
    svg = layers_svg(compared)
    picture = file.with_name(f"{file.stem}_layers.svg")
    command = shlex.join([*made_by, str(file), *map(str, folders)])
    picture_name = None if svg is None else picture.name
    text = page_markdown(compared, sweeps, command=command, picture=picture_name, sections=sections(sweeps))
    file.write_text(text, encoding="utf-8")
    if svg is None:
        return [file]
    picture.write_text(svg, encoding="utf-8")
    return [file, picture]
