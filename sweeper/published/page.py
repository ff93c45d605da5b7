"""What is shown of published figures beside measured ones: a table in the terminal; a page with its picture."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from html import escape
from importlib import resources
from pathlib import Path

from rich.console import Console

from sweeper.config import parse
from sweeper.errors import ConfigError
from sweeper.published.agreement import Agreement
from sweeper.published.lookup import Reproduction, Reproductions, compare_with_published
from sweeper.published.publication import Figure, Publication, Quantity
from sweeper.records.cell import ExplanationRecord
from sweeper.records.store import EXPLAIN_FOLDER
from sweeper.records.sweep import Sweep, short_label
from sweeper.reports.cells_table import Table
from sweeper.reports.markdown import escaped, markdown, table_lines
from sweeper.reports.page.chart import Curve, chart
from sweeper.reports.terminal import drawn, say

Sections = Callable[[Sequence[Sweep]], Iterable[str]]
"""Lines of Markdown that a page has of its own, from the sweeps that it is made of."""

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
    sections: Sections = lambda _: (),
) -> list[Path]:
    """Writes the page and, where there are published tables over layers, the picture. Returns what was written.

    Args:
        file: of the page; the picture lies beside it.
        folders: of sweeps; the published figures are those that the first one was run with.
        made_by: the command without its arguments, which the page shows.
        sections: of a page that has more to say than figures.

    Raises:
        ConfigError: a folder is no sweep, the first one was run without `reported`, or the file cannot be written.
    """
    sweeps = [Sweep.read(folder) for folder in folders]
    given = sweeps[0].description.config.get("reported")
    if given is None:
        raise ConfigError(f"{folders[0]}: run without published figures; run it again with reported=NAME")
    compared = compare_with_published(parse(Publication, given, "reported"), sweeps[0])
    command = shlex.join([*made_by, str(file), *map(str, folders)])
    lines = [f"# {escaped(compared.report.title)}", ""]
    lines += ["Made by this command, from the sweeps at the end of the page:", "", "```", command, "```", ""]
    lines += [*_sources(compared), "", *_published_and_measured(compared)]
    svg = _layers_svg(compared)
    picture = file.with_name(f"{file.stem}_layers.svg")
    if svg is not None:
        alternative = "Mean and max difference of every layer's output, published and measured"
        lines += ["## Layer by layer", "", f"![{alternative}]({picture.name})", ""]
    lines += [*sections(sweeps), *_causes(sweeps), "## The sweeps", ""]
    for sweep in sweeps:
        table_of_cells = markdown(sweep).partition("\n")[2]
        lines += [f"### {escaped(sweep.folder.as_posix())}", table_of_cells, ""]
    written = {file: "\n".join(lines).rstrip() + "\n"} | ({} if svg is None else {picture: svg})
    try:
        for path, text in written.items():
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from None
    return list(written)


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
    for figure in compared.report.figures:
        numbers = compared.of(figure)
        if len(numbers) > 1:
            yield from (f"<details><summary>{escape(figure.id)}: all {len(numbers)} numbers</summary>", "")
            yield from (*table_lines(_every_number(numbers)), "</details>", "")


def _figures(compared: Reproductions) -> Table:
    """A row a figure."""
    rows = []
    for figure in compared.report.figures:
        numbers = compared.of(figure)
        published, measured = _ends([one.published for one in numbers]), _ends([*map(_measured, numbers)])
        status = numbers[0].status.value if len(numbers) == 1 else _ended(numbers)
        rows.append((figure.id, figure.section, published, measured, status, _measured_on(numbers[0])))
    return Table(("figure", "where", "published", "measured", "status", "checkpoint"), tuple(rows))


def _every_number(numbers: Sequence[Reproduction]) -> Table:
    """A row a number."""
    rows = [
        (*map(str, one.index.values()), one.published, _measured(one), one.status.value, _measured_on(one))
        for one in numbers
    ]
    return Table((*numbers[0].index, "published", "measured", "status", "checkpoint"), tuple(rows))


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
    lines = []
    for sweep in sweeps:
        for record in sweep.records:
            path = sweep.folder / EXPLAIN_FOLDER / f"{record.cell_id}.json"
            if path.is_file():
                found = ExplanationRecord.model_validate_json(path.read_text(encoding="utf-8"))
                label = short_label(record.axes, sweep.varying) or record.cell_id
                lines.append(f"- {escaped(f'{sweep.folder.as_posix()}, {label}: {found.kind}; {found.cause}')}")
    heading = ["## What closes the difference", "", "By `python -m sweeper explain SWEEP CELL`:", ""]
    return [*heading, *lines, ""] if lines else []


def _layers_svg(compared: Reproductions) -> str | None:
    """The mean and max difference of every layer's output as a file of its own; None without such a table."""
    figures = [figure for figure in compared.report.figures if _is_a_curve(figure)]
    if not figures:
        return None
    curves = [curve for i, figure in enumerate(figures) for curve in _curves(compared, figure, 2 * i)]
    style = (resources.files("sweeper.reports.page") / "style.css").read_text(encoding="utf-8")
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
