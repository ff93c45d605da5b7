"""The page of a sweep: one file that needs no network, made from the records alone."""

from __future__ import annotations

import base64
import functools
import hashlib
import itertools
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sweeper.records.cell import CellRecord, ModuleRecord, Status, TokenFigures
from sweeper.records.sweep import Sweep, short_ids
from sweeper.reports.answer import FOUND, answer, end_of, worst_first
from sweeper.reports.cell import Section, sections, texts_of
from sweeper.reports.cells_table import (
    FIGURES,
    cells_table,
    cosine,
    fraction,
    made_on,
    number,
    output_name,
    reasons,
    short_module,
    summary,
)
from sweeper.reports.origin import origins
from sweeper.reports.page import data
from sweeper.reports.page.chart import chart
from sweeper.reports.page.data import MOST_IN_FULL, Layers
from sweeper.reports.page.specs import SPECS, THEMES, config, style_variables

if TYPE_CHECKING:
    from jinja2 import Template

MOST_ROWS = 200  # of the table without scripts
MEANINGS = {
    "failed": "it raised an error",
    "semantic": "another function: a mask, positions, weights or code differ; rounding does not explain it",
    "policy": "a state was rounded, and nobody asked for that",
    "inconclusive": "neither could be shown",
    "not judged": "measured without a verdict",
    "rounding": "the same function, rounded differently",
    "identical": "the same bits",
    "unsupported": "cannot run here",
}
_SCRIPT = ("cells", "figures", "maps", "start")  # in this order
MOST_STARTS = 3  # modules that are named in the answer
QUOTED_LETTERS = 60  # of a text in the answer

Modules = Sequence[ModuleRecord]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the cells.

    Attributes:
        key: of the page's data. axis: the key is an axis.
        kind: how it is written: `id`, `word`, `number`, `share` (of what is lost) or `cosine` (from the distance to 1).
        wide: left out on a phone.
    """

    key: str
    title: str
    kind: str
    axis: bool = False
    wide: bool = True


@dataclass(frozen=True, kw_only=True)
class _View:
    """One cell in full."""

    record: CellRecord
    sections: list[Section]
    layers: Layers | None
    maps: dict[str, Any]


def page(sweep: Sweep, known: Mapping[tuple[str, str], Modules] = MappingProxyType({}), *, full: str = "") -> str:
    """The page as HTML text. Names from configs and models are escaped.

    Args:
        sweep: whose.
        known: modules that need not be read, by cell_id and attempt.
        full: id of a cell that is shown in full whatever its rank.
    """
    records = worst_first(sweep.records)
    asked = [record for record in records[MOST_IN_FULL:] if record.cell_id == full]
    maps = data.CellMaps()
    views = [_view(sweep, record, known, maps) for record in [*asked, *records[:MOST_IN_FULL]]]
    return _template().render(
        sweep=sweep,
        records=records,
        views=views,
        in_full={view.record.cell_id for view in views},
        ends={record.cell_id: end_of(record) for record in records},
        meanings=[(end, MEANINGS[end]) for end in dict.fromkeys(map(end_of, records))],
        headline=headline(records),
        summary=summary(sweep),
        made_on=[line.partition(": ")[::2] for line in made_on(sweep.records)],
        figures=FIGURES,
        reasons=[reason for status, reason in reasons(sweep.records) if status is Status.OK],
        origins=origins(sweep),
        axes=sweep.varying if len(records) > 1 and len(sweep.varying) > 1 else [],
        pair=telling_axes(sweep, records),
        **_answered(sweep),
        **_drawn(sweep, records, views),
    )


def _answered(sweep: Sweep) -> dict[str, Any]:
    """The answer, since where each of its findings is, and what all cells share."""
    table, found = cells_table(sweep.records), answer(sweep.records, sweep.folder)
    return {
        "answer": found,
        "starts": {line.text: _starts(line.cells) for line in found},
        "legend": [
            ("rel. L2", "2-norm of the difference over that of the reference"),
            ("since", "the first module whose output differs; texts and tokens are counted from 0"),
            *table.legend(output_name(sweep.records)),
        ],
        "constant": table.constant,
    }


def _drawn(sweep: Sweep, records: Sequence[CellRecord], views: Sequence[_View]) -> dict[str, Any]:
    """The table, the curves and the maps: as they are without scripts, and as data for them."""
    ids = short_ids([record.cell_id for record in records])
    labels = {record.cell_id: data.cell_label(sweep, record, ids) for record in records}
    layers = [
        replace(view.layers, labels=(labels[view.record.cell_id],), end=end_of(view.record))
        for view in views
        if view.layers
    ]
    curves = data.styled(data.merged(layers))
    maps = data.shared_maps([(view.record.cell_id, view.maps) for view in views if view.maps])
    columns = data.cell_columns(sweep, records)
    shown = _columns(sweep, columns)
    content = {
        "letters": max(map(len, ids.values()), default=0),
        "cells": columns,
        "columns": [vars(column) for column in shown],
        "curves": data.curve_data(curves),
        "maps": maps,
    }
    return {
        "labels": labels,
        "columns": _static_table(columns, shown, ids),
        "charts": _charts(curves),
        "curves": curves,
        "coloured_by_verdict": any(curve.end and curve.style is None for curve in curves),
        "maps": maps,
        "data": data.as_script(content),
    }


def _view(sweep: Sweep, record: CellRecord, known: Mapping[tuple[str, str], Modules], maps: data.CellMaps) -> _View:
    modules = known.get((record.cell_id, record.attempt))
    tokens: dict[str, TokenFigures] = {}
    if modules is None:
        modules, tokens = sweep.modules(record.cell_id), sweep.tokens(record.cell_id)
    else:
        tokens = {module.name: module.tokens for module in modules if module.tokens}
    return _View(
        record=record,
        sections=sections(record, modules),
        layers=data.layers_of(modules),
        maps=maps.of(record, modules, tokens),
    )


def headline(records: Sequence[CellRecord]) -> str:
    """What a reader looks for first: how many cells are wrong."""
    wrong = sum(end_of(record) in FOUND for record in records)
    if not records:
        return "No cell has run"
    if not wrong:
        return "Nothing is wrong" if len(records) > 1 else "Nothing is wrong in this cell"
    return f"{wrong} of {len(records)} cells need{'s' * (wrong == 1)} a look"


def _starts(cells: Sequence[CellRecord]) -> str:
    """Names the modules since which the cells of a finding differ, and where in the texts the worst does most."""
    if not cells or end_of(cells[0]) not in FOUND:
        return ""
    names = Counter(short_module(record.first_divergence) for record in cells if record.first_divergence)
    several = len(names) > 1
    parts = [f"{name} (in {count})" if several else name for name, count in names.most_common(MOST_STARTS)]
    parts += [f"{len(names) - MOST_STARTS} more modules"] * (len(names) > MOST_STARTS)
    return ", ".join(parts) + (_most_at(cells[0]) if parts else "")


def _most_at(record: CellRecord) -> str:
    """`; most at text 1 token 5 (“hi how can i help”)`: where in the texts the first module to differ does most."""
    verdict, texts = record.verdict, texts_of(record)
    place = re.search(r"most at (text (\d+) token \d+)", verdict.first_divergence or "") if verdict else None
    if place is None:
        return ""
    text = int(place[2])
    quoted = f" (“{textwrap.shorten(texts[text], QUOTED_LETTERS, placeholder=' …')}”)" if text < len(texts) else ""
    return f"; most at {place[1]}{quoted}"


def telling_axes(sweep: Sweep, records: Sequence[CellRecord]) -> tuple[str, str]:
    """The two axes that part right from wrong best: the fewest places hold both; then those of fewest verdicts."""

    def mixed(pair: tuple[str, str]) -> tuple[int, int, int]:
        ends: dict[tuple[Any, ...], set[str]] = {}
        for record in records:
            if end_of(record) != Status.UNSUPPORTED:
                ends.setdefault(tuple(record.axes[axis] for axis in pair), set()).add(end_of(record))
        both = sum(bool(here & {*FOUND}) and bool(here - {*FOUND}) for here in ends.values())
        return both, sum(len(here) - 1 for here in ends.values()), len(ends)

    axes = sweep.varying
    if len(axes) < 2:
        return (axes[0], axes[0]) if axes else ("", "")
    return min(itertools.combinations(axes, 2), key=mixed)


def _columns(sweep: Sweep, columns: Mapping[str, Any]) -> list[Column]:
    """Those that have anything to say."""
    if not columns["id"]:
        return []
    axes = [Column(key=axis, title=axis, kind="word", axis=True, wide=False) for axis in sweep.varying]
    found = [
        Column(key="id", title="cell", kind="id"),
        Column(key="end", title="verdict", kind="word", wide=False),
        Column(key="rel_l2", title="rel. L2", kind="number", wide=False),
        Column(key="starts", title="starts at", kind="word", wide=False),
        *axes,
        Column(key="max_abs", title="max |Δ|", kind="number"),
        Column(key="mean_abs", title="mean |Δ|", kind="number"),
        Column(key="unequal", title="equal", kind="share"),
        Column(key="distance", title="cosine", kind="cosine"),
        Column(key="kl", title="KL", kind="number"),
        Column(key="top1_lost", title="top-1", kind="share"),
        Column(key="state", title="state", kind="word"),
        Column(key="status", title="status", kind="word"),
    ]
    return [column for column in found if column.axis or _says_something(column, columns[column.key])]


def _says_something(column: Column, values: Any) -> bool:
    if column.kind == "word":
        return column.key == "end" or bool({*values["values"]} - {"", "same", "ok", "failed", "unsupported"})
    return any(value is not None for value in values)


def _static_table(columns: Mapping[str, Any], shown: Sequence[Column], ids: Mapping[str, str]) -> dict[str, Any]:
    """The table as it is without scripts: its first rows, as text."""
    count = min(len(columns["id"]), MOST_ROWS)
    rows = [[_text(columns, column, row, ids) for column in shown] for row in range(count)]
    return {"shown": shown, "rows": rows, "left_out": len(columns["id"]) - count}


def _text(columns: Mapping[str, Any], column: Column, row: int, ids: Mapping[str, str]) -> str:
    values = columns["axes"][column.key] if column.axis else columns[column.key]
    if column.kind == "word":
        return str(values["values"][values["of"][row]])
    if column.kind == "id":
        return ids[values[row]]
    value = values[row]
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return {"number": number, "share": lambda lost: fraction(1 - lost), "cosine": lambda away: cosine(1 - away)}[
        column.kind
    ](value)


def _charts(curves: Sequence[Layers]) -> list[tuple[str, str]]:
    """The curves as they are without scripts."""
    if not curves:
        return []
    figures = (("rel. L2", "rel_l2"), ("max |Δ|", "max_abs"))
    return [(name, chart([curve.curve(getattr(curve, figure)) for curve in curves], name)) for name, figure in figures]


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("sweeper.reports.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    scripts = _scripts()
    environment.globals |= {
        "style": style_variables() + (folder / "style.css").read_text(encoding="utf-8"),
        "scripts": scripts,
        "specs": data.as_script({"specs": SPECS, "themes": THEMES, "config": {name: config(name) for name in THEMES}}),
        "policy": _policy(scripts),
    }
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8"))


def _scripts() -> list[str]:
    """Vega with its licence, then what is ours."""
    folder = resources.files("sweeper.reports.page")
    vendor = folder / "vendor"
    licence = (vendor / "LICENSE.vega").read_text(encoding="utf-8")
    names = ("vega.min.js", "vega-lite.min.js", "vega-interpreter.js")
    library = [(vendor / name).read_text(encoding="utf-8") for name in names]
    return [f"/* Vega, Vega-Lite and vega-interpreter:\n{licence}*/\n" + library[0], *library[1:], _own(folder)]


def _own(folder: Any) -> str:
    parts = [(folder / "script" / f"{name}.js").read_text(encoding="utf-8") for name in _SCRIPT]
    return '"use strict";\n{\n' + "\n".join(parts) + "}\n"


def _policy(scripts: Sequence[str]) -> str:
    """What the page may do: run these scripts, and nothing from elsewhere."""
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    allowed = " ".join(f"'sha256-{one}'" for one in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )
