"""What is shown of published figures beside measured ones: a table in the terminal; a short page, with its picture and
every number as data beside it."""

from __future__ import annotations

import csv
import io
import shlex
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from rich.console import Console

from sweeper.config import parse
from sweeper.errors import ConfigError, DamagedError
from sweeper.published.agreement import Agreement
from sweeper.published.lookup import Reproduction, Reproductions, compare_with_published
from sweeper.published.publication import Figure, Publication, Quantity
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep, short_label
from sweeper.reports.cells_table import Table, cells_table, made_on, summary
from sweeper.reports.markdown import escaped, table_lines
from sweeper.reports.page.chart import Curve, chart
from sweeper.reports.page.specs import style_variables
from sweeper.reports.terminal import drawn, say


class Section(NamedTuple):
    """Lines of Markdown that a page has of its own, and whole tables beside it: `STEM_NAME.csv` for each name."""

    lines: Sequence[str] = ()
    data: Mapping[str, Table] = {}


Sections = Callable[[Sequence[Sweep]], Section]
"""What a page has of its own, from the sweeps that it is made of."""

_STYLES = dict(zip(Agreement, ("green", "green", "yellow", "red", "dim"), strict=True))
_CURVES = {Quantity.MODULE_MEAN_ABS: "mean |Δ|", Quantity.MODULE_MAX_ABS: "max |Δ|"}
_SET_UP = ("author", "published", "address", "model", "revision", "dtype", "attention", "hardware", "libraries")


def print_reproductions(compared: Reproductions, out: Console) -> None:
    """Prints a row a figure; for a table its first and last number, and how many numbers have which status."""
    say(out, f"\npublished and measured: {compared.report.title}", "bold")
    worst = [
        max((one.status for one in compared.of(figure)), key=list(Agreement).index)
        for figure in compared.report.figures
    ]
    out.print(drawn(_figures(compared), styles=[_STYLES[status] for status in worst]))
    for reason in _reasons(compared):
        say(out, reason, "dim")


def write_page(
    file: Path,
    folders: Sequence[Path],
    *,
    made_by: Sequence[str] = ("python", "-m", "sweeper", "published"),
    sections: Sections = lambda _: Section(),
) -> list[Path]:
    """Writes the page; beside it the picture, where there are published tables over layers, and as CSV every number and
    every cell. Returns what was written, the page first.

    Args:
        file: of the page; what lies beside it begins with its name.
        folders: of sweeps; the published figures are those that the first one was run with.
        made_by: the command without its arguments, which the page shows.
        sections: of a page that has more to say than figures.

    Raises:
        ConfigError: a folder is no sweep, the first one was run without `reported`, or a file cannot be written.
    """
    sweeps = [Sweep.read(folder) for folder in folders]
    given = sweeps[0].description.config.get("reported")
    if given is None:
        raise ConfigError(f"{folders[0]}: run without published figures; run it again with reported=NAME")
    compared = compare_with_published(parse(Publication, given, "reported"), sweeps[0])
    own = sections(sweeps)
    data = {"numbers": _every_number(compared), "cells": _every_cell(sweeps), **own.data}
    beside = {file.with_name(f"{file.stem}_{name}.csv"): _csv(table) for name, table in data.items()}
    picture = file.with_name(f"{file.stem}_layers.svg")
    if (svg := _layers_svg(compared)) is not None:
        beside[picture] = svg
    command = shlex.join([*made_by, str(file), *map(str, folders)])
    lines = [f"# {escaped(compared.report.title)}", ""]
    lines += ["Made by this command, from the sweeps at the end of the page:", "", "```", command, "```", ""]
    lines += [*_sources(compared), "", *_published_and_measured(compared)]
    lines += _layer_by_layer(picture) if picture in beside else []
    lines += [*own.lines, *_causes(sweeps), *_sweeps(sweeps, list(beside))]
    written = {file: "\n".join(lines).rstrip() + "\n"} | beside
    try:
        for path, text in written.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return list(written)


def _layer_by_layer(picture: Path) -> list[str]:
    alternative = "Mean and max difference of every layer's output, published and measured"
    return ["## Layer by layer", "", f"![{alternative}]({picture.name})", ""]


def _sweeps(sweeps: Sequence[Sweep], beside: Sequence[Path]) -> Iterator[str]:
    """How each sweep was made and ended, and where all of its cells are."""
    links = ", ".join(f"[{path.name}]({path.name})" for path in beside)
    yield from ("## The sweeps", "", f"Every number and every cell, as data: {links}.", "")
    for sweep in sweeps:
        yield from (f"- {escaped(sweep.folder.as_posix())}: {escaped(summary(sweep))}.", "")
        yield from ("  ```", textwrap.indent(sweep.command, "  "), "  ```", "")
        yield from (f"  {escaped('; '.join(made_on(sweep.records)))}", "")


def _sources(compared: Reproductions) -> Iterator[str]:
    for key, source in compared.report.sources.items():
        stated = "; ".join(f"{field}: {getattr(source, field)}" for field in _SET_UP)
        name = "" if len(compared.report.sources) == 1 else f"{key}: "
        why_not = f" It cannot run here: {source.why_not}." if source.why_not else ""
        instead = f" The same kind of difference, here: `{source.instead}`" if source.instead else ""
        yield f"- {escaped(name + stated)}.{escaped(why_not)}{instead}"


def _published_and_measured(compared: Reproductions) -> Iterator[str]:
    yield from ("## Published and measured", "", f"{len(compared.numbers)} numbers: {_ended(compared.numbers)}.", "")
    yield "Each status is computed by `sweeper.published.agreement`, which states its rule. On another checkpoint"
    yield from ("than the published one nothing but inputs gets better than `same order`.", "")
    yield from table_lines(_figures(compared))
    yield from (f"- {escaped(reason)}" for reason in _reasons(compared))
    yield ""


def _figures(compared: Reproductions) -> Table:
    """A row a figure."""
    rows = []
    for figure in compared.report.figures:
        numbers = compared.of(figure)
        published, measured = _ends([one.published for one in numbers]), _ends([*map(_measured, numbers)])
        status = numbers[0].status.value if len(numbers) == 1 else _ended(numbers)
        rows.append((figure.id, figure.section, published, measured, status, _measured_on(numbers[0])))
    return Table(("figure", "where", "published", "measured", "status", "checkpoint"), tuple(rows))


def _every_number(compared: Reproductions) -> Table:
    """A row a number; a column for each index that any figure has."""
    keys = list(dict.fromkeys(key for one in compared.numbers for key in one.index))
    rows = [
        (figure.id, *(str(one.index.get(key, "")) for key in keys), one.published, _measured(one), *_status(one))
        for figure in compared.report.figures
        for one in compared.of(figure)
    ]
    return Table(("figure", *keys, "published", "measured", "status", "checkpoint"), tuple(rows))


def _status(one: Reproduction) -> tuple[str, str]:
    return one.status.value, _measured_on(one)


def _every_cell(sweeps: Sequence[Sweep]) -> Table:
    """A row a cell of every sweep, as its table of cells shows it; a column for each heading that any of them has."""
    tables = [(sweep.folder.as_posix(), cells_table(sweep.records)) for sweep in sweeps]
    headings = list(dict.fromkeys(heading for _, table in tables for heading in table.headings))
    rows = []
    for folder, table in tables:
        for row in table.rows:
            cell = dict(zip(table.headings, row, strict=False))
            rows.append((folder, *(cell.get(heading, "") for heading in headings)))
    return Table(("sweep", *headings), tuple(rows))


def _csv(table: Table) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([table.headings, *table.rows])
    return text.getvalue()


def _ends(texts: Sequence[str]) -> str:
    """The first and the last of a table's numbers."""
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} … {texts[-1]}"


def _measured(one: Reproduction) -> str:
    """Six significant digits at most; `reported.json` has them all."""
    if one.measured is None:
        return "–"
    return str(bool(one.measured)) if one.published in ("True", "False") else f"{one.measured:.6g}"


def _measured_on(one: Reproduction) -> str:
    """The checkpoint; where it is not the published one, that."""
    return f"{one.checkpoint or '–'}{' (another)' if one.checkpoint and not one.same_checkpoint else ''}"


def _ended(numbers: Sequence[Reproduction]) -> str:
    """`12 same order, 18 not reproduced`, best first."""
    counts = Counter(one.status for one in numbers)
    return ", ".join(f"{counts[status]} {status.value}" for status in Agreement if counts[status])


def _reasons(compared: Reproductions) -> list[str]:
    """Why numbers are not reproduced or not comparable: each reason once, with how many numbers it concerns."""
    counts = Counter((one.status, one.why) for one in compared.numbers if one.why is not None)
    return [f"{status.value} (×{count}): {why}" for (status, why), count in counts.items()]


def _causes(sweeps: Sequence[Sweep]) -> list[str]:
    """A line a cause and sweep: in which cells."""
    cells: dict[tuple[str, str, str], list[str]] = {}
    damaged: list[str] = []
    for sweep in sweeps:
        for record in sweep.records:
            try:
                found = Store(sweep.folder).explanation(record.cell_id)
            except DamagedError as error:
                damaged.append(f"- {error}; `explain`, typed again, writes it anew")
                continue
            if found is not None:
                cause = (found.cause or "no cause found").partition("; ")[0]  # the rest says where it moved this cell
                label = short_label(record.axes, sweep.varying) or record.cell_id
                cells.setdefault((sweep.folder.as_posix(), found.kind, cause), []).append(label)
    lines = [f"- {folder}: {kind}; {cause}, in {', '.join(labels)}" for (folder, kind, cause), labels in cells.items()]
    lines += damaged
    heading = ["## What closes the difference", "", "By `python -m sweeper explain SWEEP CELL`:", ""]
    return [*heading, *map(escaped, lines), ""] if lines else []


def _layers_svg(compared: Reproductions) -> str | None:
    """The mean and max difference of every layer's output as a file of its own; None without such a table."""
    figures = [figure for figure in compared.report.figures if _is_a_curve(figure)]
    if not figures:
        return None
    curves = [curve for i, figure in enumerate(figures) for curve in _curves(compared, figure, 2 * i)]
    style = style_variables() + (resources.files("sweeper.reports.page") / "style.css").read_text(encoding="utf-8")
    drawing = chart(curves, " and ".join(_CURVES[figure.quantity] for figure in figures))
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    return drawing.replace("<svg", head, 1).replace(">", f">\n<style>\n{style}</style>\n", 1) + "\n"


def _is_a_curve(figure: Figure) -> bool:
    """A table over layers, of one kind of module."""
    layers = {number.index.get("layer") for number in figure.numbers()}
    return figure.quantity in _CURVES and len(layers) == len(figure.numbers()) > 1


def _curves(compared: Reproductions, figure: Figure, style: int) -> Iterator[Curve]:
    numbers, name = compared.of(figure), _CURVES[figure.quantity]
    published = tuple(number.value for number in figure.numbers())
    yield Curve(f"{name}, published", f"{name}, published", published, style)
    measured = tuple(one.measured for one in numbers if one.measured is not None)  # a smaller model has fewer layers
    if measured:
        yield Curve(f"{name}, {numbers[0].checkpoint}", f"{name}, measured", measured, style + 1)
