"""Published tables over layers, published against measured, as one SVG file."""

from __future__ import annotations

from importlib import resources

from sweeper.published.lookup import Reproductions
from sweeper.published.publication import Figure, Quantity
from sweeper.reports.page.chart import Curve, chart

_NAMES = {Quantity.MODULE_MEAN_ABS: "mean |Δ|", Quantity.MODULE_MAX_ABS: "max |Δ|"}


def layers_svg(compared: Reproductions) -> str | None:
    """The mean and max difference of every layer's output on a logarithmic scale; None without such a table."""
    figures = [figure for figure in compared.report.figures if _is_a_curve(figure)]
    if not figures:
        return None
    curves = [curve for i, figure in enumerate(figures) for curve in _curves(compared, figure, 2 * i)]
    style = (resources.files("sweeper.reports.page") / "style.css").read_text(encoding="utf-8")
    drawing = chart(curves, " and ".join(_NAMES[figure.quantity] for figure in figures))
    head = '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif"'
    return drawing.replace("<svg", head, 1).replace(">", f">\n<style>\n{style}</style>\n", 1) + "\n"


def _is_a_curve(figure: Figure) -> bool:
    """A table over layers, of one kind of module."""
    layers = {number.index.get("layer") for number in figure.numbers()}
    return figure.quantity in _NAMES and len(layers) == len(figure.numbers()) > 1


def _curves(compared: Reproductions, figure: Figure, style: int) -> list[Curve]:
    numbers = compared.of(figure)
    published = tuple(number.value for number in figure.numbers())
    measured = tuple(one.measured for one in numbers if one.measured is not None)  # a smaller model has fewer layers
    name = _NAMES[figure.quantity]
    curves = [Curve(f"{name}, published", f"{name}, published", published, style)]
    if measured:
        curves.append(Curve(f"{name}, {numbers[0].checkpoint}", f"{name}, measured", measured, style + 1))
    return curves
