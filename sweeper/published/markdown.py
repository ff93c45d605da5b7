"""The page of a publication as Markdown: published figures, causes and cells of finished sweeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from html import escape

from sweeper.published.agreement import Agreement
from sweeper.published.figures_table import ends, measured, measured_on, reasons, statuses
from sweeper.published.lookup import Reproduction, Reproductions
from sweeper.published.publication import Figure
from sweeper.records.cell import ExplanationRecord
from sweeper.records.store import EXPLAIN_FOLDER
from sweeper.records.sweep import Sweep, short_label, varying_axes
from sweeper.reports.markdown import escaped, markdown


def page_markdown(
    compared: Reproductions, sweeps: Sequence[Sweep], *, command: str, picture: str | None, sections: Iterable[str] = ()
) -> str:
    """The whole page.

    Args:
        compared: the publication, and its figures in the first of the sweeps.
        sweeps: all that the page is made of.
        command: what made the page.
        picture: name of the SVG file beside it, if there is one.
        sections: lines that this page alone has.
    """
    lines = [
        f"# {escaped(compared.report.title)}",
        "",
        "Made by this command, from the sweeps at the end of the page:",
        "",
    ]
    lines += ["```", command, "```", "", *_sources(compared), *_figures(compared)]
    if picture is not None:
        alternative = "Mean and max difference of every layer's output, published and measured"
        lines += ["## Layer by layer", "", f"![{alternative}]({picture})", ""]
    lines += [*sections, *_causes(sweeps)]
    lines += ["## The sweeps", ""]
    for sweep in sweeps:
        table_of_cells = markdown(sweep).partition("\n")[2]
        lines += [f"### {escaped(_name(sweep))}", table_of_cells, ""]
    return "\n".join(lines).rstrip() + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table and an empty line; nothing without rows."""
    lines = [_row([escaped(value) for value in row]) for row in rows]
    return (
        [_row([escaped(heading) for heading in headings]), _row(["---"] * len(headings)), *lines, ""] if lines else []
    )


def _row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _sources(compared: Reproductions) -> Iterator[str]:
    fields = ("author", "published", "address", "model", "revision", "dtype", "attention", "hardware", "libraries")
    for key, source in compared.report.sources.items():
        stated = "; ".join(f"{field}: {getattr(source, field)}" for field in fields)
        name = "" if len(compared.report.sources) == 1 else f"{key}: "
        why_not = f" It cannot run here: {source.why_not}." if source.why_not else ""
        instead = f" The same kind of difference, here: `{source.instead}`" if source.instead else ""
        yield f"- {escaped(name + stated)}.{escaped(why_not)}{instead}"
    yield ""


def _figures(compared: Reproductions) -> list[str]:
    counts = Counter(number.status for number in compared.numbers)
    ended = ", ".join(f"{counts[status]} {status.value}" for status in Agreement if counts[status])
    rows = [_figure(figure, compared.of(figure)) for figure in compared.report.figures]
    lines = ["## Published and measured", "", f"{len(compared.numbers)} numbers: {ended}.", ""]
    lines += ["Each status is computed by `sweeper.published.agreement`, which states its rule. On another checkpoint"]
    lines += ["than the published one nothing but inputs gets better than `same order`.", ""]
    lines += table(("figure", "where", "published", "measured", "status", "checkpoint"), rows)
    lines += [f"- {status.value} (×{count}): {escaped(why)}" for (status, why), count in reasons(compared)]
    return [*lines, "", *_every_number(compared)]


def _figure(figure: Figure, numbers: Sequence[Reproduction]) -> tuple[str, ...]:
    published, found = ends([one.published for one in numbers]), ends([measured(one) for one in numbers])
    return figure.id, figure.section, published, found, statuses(numbers), measured_on(numbers[0])


def _every_number(compared: Reproductions) -> Iterator[str]:
    for figure in compared.report.figures:
        numbers = compared.of(figure)
        if len(numbers) == 1:
            continue
        yield from (f"<details><summary>{escape(figure.id)}: all {len(numbers)} numbers</summary>", "")
        headings = (*numbers[0].index, "published", "measured", "status", "checkpoint")
        yield from table(
            headings,
            (
                (*map(str, one.index.values()), one.published, measured(one), one.status.value, measured_on(one))
                for one in numbers
            ),
        )
        yield from ("</details>", "")


def _causes(sweeps: Sequence[Sweep]) -> list[str]:
    lines = []
    for sweep in sweeps:
        varying = varying_axes([record.axes for record in sweep.records])
        for record in sweep.records:
            path = sweep.folder / EXPLAIN_FOLDER / f"{record.cell_id}.json"
            if path.is_file():
                found = ExplanationRecord.model_validate_json(path.read_text(encoding="utf-8"))
                label = short_label(record.axes, varying) or record.cell_id
                lines += [f"- {escaped(f'{_name(sweep)}, {label}: {found.kind}; {found.cause}')}"]
    heading = ["## What closes the difference", "", "By `python -m sweeper explain SWEEP CELL`:", ""]
    return [*heading, *lines, ""] if lines else []


def _name(sweep: Sweep) -> str:
    return sweep.folder.as_posix()
