"""One SVG chart: a figure a layer on a logarithmic scale with a floor for zero, a line a curve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import accumulate, groupby

WIDTH, HEIGHT = 1080, 380
LEFT, RIGHT, TOP, BOTTOM = 64, 270, 14, 44
ZERO_GAP = 34  # between the lowest decade and the line for zero
LABEL_HEIGHT = 15
COLOURS = 6  # classes c0..c5 of the style sheet; the next six curves use them again, dashed


@dataclass(frozen=True)
class Curve:
    """One line of a chart.

    Attributes:
        label: names it on hover. short_label: names it at its end; None leaves it nameless there.
        values: a figure a layer; 0 is drawn on the floor, what is not finite is a gap with a cross above it.
        style: number of its colour, None for that of how its cell ended.
        end: how that is, a word of `answer.WORST_FIRST`; empty for grey.
    """

    label: str
    short_label: str | None
    values: tuple[float, ...]
    style: int | None
    end: str = ""

    @property
    def css(self) -> str:
        if self.style is None:
            return f"end-{self.end.replace(' ', '-')}" if self.end else "grey"
        return f"c{self.style % COLOURS}" + (" dashed" if self.style >= COLOURS else "")


class Scale:
    """Layer and value -> x and y of the drawing. Zero lies below the lowest decade."""

    def __init__(self, curves: Sequence[Curve]) -> None:
        self.layers = max(len(curve.values) for curve in curves)
        positive = [value for curve in curves for value in curve.values if 0 < value < math.inf]
        self.low = math.floor(math.log10(min(positive, default=1)))
        self.high = max(math.ceil(math.log10(max(positive, default=1))), self.low + 1)
        self.floor = HEIGHT - BOTTOM

    def x(self, layer: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (layer / (self.layers - 1) if self.layers > 1 else 0.5)

    def y(self, value: float) -> float:
        if value == 0:
            return self.floor
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return self.floor - ZERO_GAP - share * (self.floor - ZERO_GAP - TOP)


def chart(curves: Sequence[Curve], figure: str) -> str:
    """The chart as an SVG element; text is escaped.

    Args:
        curves: at least one; those without a colour of their own are drawn behind the others, the last behind all.
        figure: what is drawn, for screen readers, e.g. `max |Δ|`.
    """
    scale = Scale(curves)
    behind = [curve for curve in curves[::-1] if curve.style is None]
    ordered = [*behind, *(curve for curve in curves if curve.style is not None)]
    title = f"{figure} of every layer's output, logarithmic; {len(curves)} curves over {scale.layers} layers"
    parts = [*_axes(scale), *(part for curve in ordered for part in _curve(curve, scale)), *_labels(curves, scale)]
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">' + "\n".join(parts) + "</svg>"


def _axes(scale: Scale) -> Iterator[str]:
    right = WIDTH - RIGHT
    step = math.ceil((scale.high - scale.low) / 8)
    for exponent in range(scale.low, scale.high + 1, step):
        y = scale.y(10.0**exponent)
        yield f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick" x="{LEFT - 10}" y="{y + 4:.1f}" text-anchor="end">{_decade(exponent)}</text>'
    yield f'<line class="floor" x1="{LEFT}" x2="{right}" y1="{scale.floor}" y2="{scale.floor}"/>'
    yield f'<text class="tick" x="{LEFT - 10}" y="{scale.floor + 4}" text-anchor="end">0</text>'
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if scale.layers / step <= 16)
    for layer in range(0, scale.layers, every):
        place = f'x="{scale.x(layer):.1f}" y="{scale.floor + 18}"'
        yield f'<text class="tick" {place} text-anchor="middle">{layer}</text>'
    yield f'<text class="tick" x="{(LEFT + right) / 2}" y="{HEIGHT - 6}" text-anchor="middle">layer</text>'


def _curve(curve: Curve, scale: Scale) -> Iterator[str]:
    yield f'<g class="curve {curve.css}"><title>{escape(curve.label)}</title>'
    numbered = list(enumerate(curve.values))
    for finite, run in groupby(numbered, key=lambda pair: math.isfinite(pair[1])):
        points = list(run)
        if finite:
            path = " ".join(f"{scale.x(layer):.1f},{scale.y(value):.1f}" for layer, value in points)
            yield f'<polyline points="{path}"/>'
            continue
        for layer, _ in points:
            place = f'x="{scale.x(layer):.1f}" y="{TOP + 4}"'
            yield f'<text class="cross" {place} text-anchor="middle">×<title>not finite</title></text>'
    for layer, value in numbered if curve.style is not None else ():
        if math.isfinite(value):
            title = escape(f"{curve.label}, layer {layer}: {value:.4g}")
            place = f'cx="{scale.x(layer):.1f}" cy="{scale.y(value):.1f}"'
            yield f'<circle {place} r="2.5"><title>{title}</title></circle>'
    yield "</g>"


def _labels(curves: Sequence[Curve], scale: Scale) -> Iterator[str]:
    """The short name of each curve right of its last finite value, moved apart where they would touch."""
    ends = []
    for curve in curves:
        finite = [(layer, value) for layer, value in enumerate(curve.values) if math.isfinite(value)]
        if curve.short_label is not None and finite:
            layer, value = finite[-1]
            ends.append((scale.y(value), scale.x(layer), curve))
    ends.sort(key=lambda end: end[0])
    for (y, x, curve), moved in zip(ends, _spread([end[0] for end in ends], scale.floor), strict=True):
        start = WIDTH - RIGHT + 14
        yield f'<path class="leader {curve.css}" d="M{x + 4:.1f} {y:.1f}L{start - 3} {moved:.1f}"/>'
        name = escape(curve.short_label or "")
        yield f'<text class="label {curve.css}" x="{start}" y="{moved + 4:.1f}">{name}</text>'


def _spread(ys: Sequence[float], floor: float) -> list[float]:
    """Sorted heights moved apart by at least `LABEL_HEIGHT`, downwards, then upwards from the floor."""
    moved = list(accumulate(ys, lambda above, y: max(y, above + LABEL_HEIGHT)))
    limit = floor
    for i in reversed(range(len(moved))):
        moved[i] = min(moved[i], limit)
        limit = moved[i] - LABEL_HEIGHT
    return moved


def _decade(exponent: int) -> str:
    if -3 <= exponent <= 3:
        return f"{10.0**exponent:g}"
    return f'10<tspan dy="-5" font-size="9">{str(exponent).replace("-", "−")}</tspan>'
