"""What the page's script draws, as JSON: a row a cell, and of the worst cells their layers, modules and tokens.

All of it is bounded, so that a page of thousands of cells is still opened at once. Figures have four digits.
"""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sweeper.records.cell import CellRecord, ModuleRecord, TokenFigures
from sweeper.records.sweep import Sweep, short_label
from sweeper.reports.answer import end_of
from sweeper.reports.cell import texts_of
from sweeper.reports.cells_table import short_module, state_summary, status
from sweeper.reports.origin import layer_outputs, module_differs
from sweeper.reports.page.chart import COLOURS, Curve

MOST_IN_FULL = 60  # cells whose modules are read
MOST_CURVES = 2 * COLOURS  # that colours and dashes can tell apart
HIGHLIGHTED = 6  # of more curves than that have their ids at their ends
MOST_IDS = 3  # right of a chart
# Of the maps of modules and of tokens. What does not fit is left out, the worst cells come first.
MODULE_BYTES, TOKEN_BYTES = 300_000, 200_000
TEXT_LETTERS = 400
MODULE_FIGURES = ("rel_l2", "max_abs")


@dataclass(frozen=True)
class Layers:
    """The layer outputs of cells whose figures are the same: one curve. `max_abs`, `mean_abs`, `rel_l2` a layer.

    Attributes:
        end: how the first of the cells ended; empty where no layer differs. style, named: as `styled` sets them.
    """

    labels: tuple[str, ...]
    max_abs: tuple[float, ...]
    mean_abs: tuple[float, ...]
    rel_l2: tuple[float, ...]
    end: str = ""
    style: int | None = None
    named: bool = False

    @property
    def label(self) -> str:
        return " = ".join(self.labels)

    def curve(self, values: tuple[float, ...]) -> Curve:
        """One of its curves."""
        return Curve(self.label, _named(self.labels) if self.named else None, values, self.style, self.end)

    @property
    def css(self) -> str:
        return self.curve(self.max_abs).css

    @property
    def worst(self) -> float:
        """What is not finite is worse than any number."""
        return max(value if math.isfinite(value) else math.inf for value in self.max_abs)


def layers_of(modules: Sequence[ModuleRecord]) -> Layers | None:
    """The curve of a cell, without its label; None where no layer ran."""
    outputs = layer_outputs(modules)
    if not outputs:
        return None
    # a tensor with no finite element on both sides has NaN figures: a gap; equal tensors are 0 even then
    figures = [module.measures if module_differs(module) else None for module in outputs]
    max_abs, mean_abs, rel_l2 = (
        tuple(getattr(figure, name) if figure else 0.0 for figure in figures) for name in _CURVE_FIGURES
    )
    return Layers((), max_abs, mean_abs, rel_l2)


_CURVE_FIGURES = ("max_abs", "mean_abs", "rel_l2")


def merged(layers: Sequence[Layers]) -> list[Layers]:
    """Cells whose curves coincide become one, so that no curve hides another."""
    alike: dict[str, list[Layers]] = {}
    for cell in layers:
        key = repr((cell.max_abs, cell.mean_abs, cell.rel_l2))  # repr: NaN is not equal to itself
        alike.setdefault(key, []).append(cell)
    return [replace(cells[0], labels=tuple(cell.labels[0] for cell in cells)) for cells in alike.values()]


def styled(curves: Sequence[Layers]) -> list[Layers]:
    """A colour for each curve that leaves zero; of more than `MOST_CURVES` each has that of how its cells ended."""
    differing = sorted((curve for curve in curves if curve.worst), key=lambda curve: -curve.worst)
    few = len(differing) <= MOST_CURVES
    places = {curve.label: place for place, curve in enumerate(differing)}
    coloured = []
    for curve in curves:
        place = places.get(curve.label)
        named = place is None or few or place < HIGHLIGHTED
        end = curve.end if place is not None else ""
        coloured.append(replace(curve, style=place if few else None, end=end, named=named))
    return coloured


def cell_columns(sweep: Sweep, records: Sequence[CellRecord]) -> dict[str, Any]:
    """A list a column, a place a cell, for the table and the grid. None: not measured."""
    outputs = [record.output for record in records]
    languages = [record.language for record in records]
    axes = {axis: _indexed([str(record.axes[axis]) for record in records]) for axis in sweep.varying}
    return {
        "id": [record.cell_id for record in records],
        "end": _indexed([end_of(record) for record in records]),
        "axes": axes,
        "max_abs": [figure(output.max_abs) if output else None for output in outputs],
        "mean_abs": [figure(output.mean_abs) if output else None for output in outputs],
        "rel_l2": [figure(output.rel_l2) if output else None for output in outputs],
        "unequal": [figure(1 - output.equal_fraction) if output else None for output in outputs],
        "distance": [_distance(record) for record in records],
        "kl": [figure(language.kl_mean) if language else None for language in languages],
        "top1_lost": [figure(1 - language.top1_agreement) if language else None for language in languages],
        "state": _indexed([state_summary(record.state) if record.output else "" for record in records]),
        "starts": _indexed([short_module(record.first_divergence or "") for record in records]),
        "status": _indexed([status(record) for record in records]),
    }


def _distance(record: CellRecord) -> float | str | None:
    """1 minus the least cosine of a text's embedding; a text that is not a number has none less."""
    cosines = [text.embedding_cosine for text in record.texts]
    if record.output is None or not cosines:
        return None
    return figure(math.nan if any(map(math.isnan, cosines)) else 1 - min(cosines), 6)


def _indexed(words: Sequence[str]) -> dict[str, Any]:
    """Each distinct word once, and which of them each place has."""
    values = list(dict.fromkeys(words))
    places = {word: place for place, word in enumerate(values)}
    return {"values": values, "of": [places[word] for word in words]}


def figure(value: float, digits: int = 4) -> float | str:
    """The number as JSON can hold it: four digits, and a word for what is not finite."""
    if math.isfinite(value):
        return float(f"{value:.{digits}g}") or 0.0
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def cell_maps(record: CellRecord, modules: Sequence[ModuleRecord], tokens: dict[str, TokenFigures]) -> dict[str, Any]:
    """One cell's layers by modules, and its layers by tokens of the worst texts. Empty where nothing differs."""
    inside = [module for module in modules if module.layer is not None]
    if not any(map(module_differs, inside)):
        return {}
    several = len({_stack(module) for module in inside}) > 1
    named = {module.name: f"{_stack(module)} {module.kind}" if several else module.kind for module in inside}
    kinds = list(dict.fromkeys(named.values()))
    layers = sorted({module.layer for module in inside if module.layer is not None})
    found = {(named[module.name], module.layer): module for module in inside}
    columns = {
        name: [[_module_figure(found.get((kind, layer)), name) for layer in layers] for kind in kinds]
        for name in MODULE_FIGURES
    }
    maps: dict[str, Any] = {"kinds": kinds, "layers": layers, **columns}
    if tokens:
        places = {module.name: f"{_stack(module)} {module.layer}" if several else module.layer for module in inside}
        maps["texts"] = _token_maps(record, tokens, [places.get(name, name) for name in tokens])
    return maps


class CellMaps:
    """`cell_maps` of many cells, made once for those that have the same figures: cells of a sweep often do."""

    def __init__(self) -> None:
        self._made: dict[Hashable, dict[str, Any]] = {}

    def of(
        self, record: CellRecord, modules: Sequence[ModuleRecord], tokens: dict[str, TokenFigures]
    ) -> dict[str, Any]:
        """A cell's; not to be changed."""
        measured = tuple(
            (module.name, module.layer, module.kind, module_differs(module), *_module_figures(module.measures))
            for module in modules
        )
        told = tuple((name, token.text, token.rel_l2) for name, token in tokens.items())
        key = texts_of(record), measured, told
        if key not in self._made:
            self._made[key] = cell_maps(record, modules, tokens)
        return self._made[key]


_module_figures = operator.attrgetter(*MODULE_FIGURES)


def _stack(module: ModuleRecord) -> str:
    """`encoder` of `model.encoder.layers.3.fc1`: what tells two stacks of layers apart."""
    path = module.name.partition(f".{module.layer}")[0].split(".")
    return path[-2] if len(path) > 1 else path[0]


def _module_figure(module: ModuleRecord | None, name: str) -> float | str | None:
    if module is None:
        return None
    return figure(getattr(module.measures, name), 3) if module_differs(module) else 0.0


def _token_maps(
    record: CellRecord, tokens: dict[str, TokenFigures], layers: Sequence[int | str | None]
) -> list[dict[str, Any]]:
    """A map a text, the worst first: `rel_l2` a layer and token, of the layers of these names."""
    first = next(iter(tokens.values()))
    texts = texts_of(record)
    maps = []
    for text in dict.fromkeys(first.text):
        start, count = first.text.index(text), first.text.count(text)  # a text's tokens follow one another
        rows = (layer.rel_l2[start : start + count] for layer in tokens.values())
        figures = [[figure(value, 3) for value in row] for row in rows]
        words = texts[text][:TEXT_LETTERS] if text < len(texts) else None
        maps.append({"text": text, "words": words, "layers": layers, "rel_l2": figures})
    return maps


def curve_data(curves: Sequence[Layers]) -> list[dict[str, Any]]:
    """The curves, as the script draws them."""
    return [
        {"labels": curve.labels, "style": curve.style, "end": curve.end}
        | {name: [figure(value) for value in getattr(curve, name)] for name in _CURVE_FIGURES}
        for curve in curves
    ]


def shared_maps(maps: Sequence[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The maps of cells, worst first, by their ids: maps that are alike once, and as many as fit.

    A cell whose tokens do not fit has `texts_left_out`.
    """
    places: dict[str, int] = {}
    of: list[tuple[str, int]] = []
    modules_left, tokens_left = MODULE_BYTES, TOKEN_BYTES
    kept: list[dict[str, Any]] = []
    written: dict[int, str] = {}
    for cell_id, one in maps:
        if id(one) not in written:
            written[id(one)] = json.dumps(one)
        key = written[id(one)]
        if key not in places:
            texts, whole = len(json.dumps(one.get("texts", ""))), len(key)
            if whole - texts > modules_left:
                continue
            if texts > tokens_left:
                one = {name: value for name, value in one.items() if name != "texts"} | {"texts_left_out": True}
                texts, whole = 0, len(json.dumps(one))
            modules_left, tokens_left = modules_left - whole + texts, tokens_left - texts
            places[key] = len(kept)
            kept.append(one)
        of.append((cell_id, places[key]))
    return {"of": of, "maps": kept}


def as_script(content: Any) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or begins a comment."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _named(labels: Sequence[str]) -> str:
    """`a1b2, c3d4 +2`: the ids of cells whose labels stand in full below the chart."""
    ids = [label.partition(" ")[0] for label in labels]
    return ", ".join(ids[:MOST_IDS]) + (f" +{len(ids) - MOST_IDS}" if len(ids) > MOST_IDS else "")


def cell_label(sweep: Sweep, record: CellRecord, ids: dict[str, str]) -> str:
    """What names a cell wherever it is drawn."""
    return f"{ids[record.cell_id]} {short_label(record.axes, sweep.varying)}"
