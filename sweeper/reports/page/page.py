"""The page of a sweep: one file without scripts, made from the records alone."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING

from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.sweep import Sweep, short_ids, short_label
from sweeper.reports.answer import answer
from sweeper.reports.cell import Section, sections
from sweeper.reports.cells_table import FIGURES, cells_table, made_on, output_name, reasons, summary
from sweeper.reports.origin import layer_outputs, module_differs, origins
from sweeper.reports.page.chart import COLOURS, Curve, chart

if TYPE_CHECKING:
    from jinja2 import Template


MOST_CURVES = 2 * COLOURS  # that colours and dashes can tell apart
HIGHLIGHTED = 6  # of more curves than that
LABEL_LETTERS = 38  # right of a chart


@dataclass(frozen=True)
class Layers:
    """The layer outputs of cells whose figures are the same: one curve. `max_abs` and `mean_abs` a layer."""

    labels: tuple[str, ...]
    max_abs: tuple[float, ...]
    mean_abs: tuple[float, ...]
    style: int | None = None

    @property
    def label(self) -> str:
        return " = ".join(self.labels)

    def curve(self, values: tuple[float, ...]) -> Curve:
        """One of its two curves; those that are coloured, and the floor, have a name at their end."""
        named = self.style is not None or not self.worst
        return Curve(self.label, _shortened(self.labels) if named else None, values, self.style)

    @property
    def worst(self) -> float:
        """What is not finite is worse than any number."""
        return max(value if math.isfinite(value) else math.inf for value in self.max_abs)


CellContent = tuple[list[Section], Layers | None]
"""What the page shows of one cell, whatever the others are. The layers have no label yet; None: there are none."""


def page(sweep: Sweep, contents: Mapping[tuple[str, str], CellContent] = MappingProxyType({})) -> str:
    """The page as HTML text. Names from configs and models are escaped.

    Args:
        contents: of cells whose modules need not be read, by cell_id and attempt.
    """
    ids = short_ids([record.cell_id for record in sweep.records])
    views, layers = [], []
    for record in sweep.records:
        known = contents.get((record.cell_id, record.attempt))
        its_sections, its_layers = known or content(record, sweep.modules(record.cell_id))
        label = short_label(record.axes, sweep.varying)
        views.append({"record": record, "label": label, "sections": its_sections})
        if its_layers is not None:
            layers.append(replace(its_layers, labels=(f"{ids[record.cell_id]} {label}",)))
    curves, table = styled(merged(layers)), cells_table(sweep.records)
    charts = [
        (name, chart([curve.curve(getattr(curve, figure)) for curve in curves], name))
        for name, figure in (("mean |Δ|", "mean_abs"), ("max |Δ|", "max_abs"))
        if curves
    ]
    return _template().render(
        sweep=sweep,
        summary=summary(sweep),
        made_on=[line.partition(": ")[::2] for line in made_on(sweep.records)],
        table=table,
        legend=table.legend(output_name(sweep.records)),
        rows=list(zip(sweep.records, table.rows, strict=True)),
        figures=FIGURES,
        Status=Status,
        origins=origins(sweep),
        answer=answer(sweep.records, sweep.folder),
        reasons=[reason for status, reason in reasons(sweep.records) if status is Status.OK],
        views=views,
        ids=ids,
        charts=charts,
        curves=curves,
        highlighted=HIGHLIGHTED,
        has_grey=any(curve.style is None and curve.worst for curve in curves),
    )


def merged(layers: Sequence[Layers]) -> list[Layers]:
    """Cells whose curves coincide become one, so that no curve hides another."""
    alike: dict[str, list[Layers]] = {}
    for cell in layers:
        alike.setdefault(repr((cell.max_abs, cell.mean_abs)), []).append(cell)  # repr: NaN is not equal to itself
    return [replace(cells[0], labels=tuple(cell.labels[0] for cell in cells)) for cells in alike.values()]


def styled(curves: Sequence[Layers]) -> list[Layers]:
    """A colour for each curve that leaves zero; of more than `MOST_CURVES` only for the worst, the others are grey."""
    differing = [curve for curve in curves if curve.worst]
    if len(differing) > MOST_CURVES:
        differing = sorted(differing, key=lambda curve: -curve.worst)[:HIGHLIGHTED]
    styles = {curve.label: number for number, curve in enumerate(differing)}
    return [replace(curve, style=styles.get(curve.label)) for curve in curves]


def content(record: CellRecord, modules: Sequence[ModuleRecord]) -> CellContent:
    return sections(record, modules), _layers(modules)


def _layers(modules: Sequence[ModuleRecord]) -> Layers | None:
    outputs = layer_outputs(modules)
    if not outputs:
        return None
    # a tensor with no finite element on both sides has NaN figures: a gap; equal tensors are 0 even then
    figures = [module.measures if module_differs(module) else None for module in outputs]
    max_abs = tuple(figure.max_abs if figure else 0.0 for figure in figures)
    return Layers((), max_abs, tuple(figure.mean_abs if figure else 0.0 for figure in figures))


def _shortened(labels: Sequence[str]) -> str:
    """`cast_after_load +2`: the first of several, cut to what fits beside the chart."""
    more = f" +{len(labels) - 1}" if len(labels) > 1 else ""
    room = LABEL_LETTERS - len(more)
    return (labels[0] if len(labels[0]) <= room else labels[0][: room - 1] + "…") + more


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    folder = resources.files("sweeper.reports.page")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals["style"] = (folder / "style.css").read_text(encoding="utf-8")
    return environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
