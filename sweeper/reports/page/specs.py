"""The figures of the page as Vega-Lite: two drawings without their rows, and two themes.

The page's script fills them in a browser: rows under `data`, values under `params`.
Rows carry their own colours where these are no scale, so that a theme is a matter of rows and of `config`.
"""

from __future__ import annotations

from typing import Any

Spec = dict[str, Any]

THEMES: dict[str, dict[str, Any]] = {
    "light": {
        "ink": "#1b2230",
        "soft": "#5b6475",
        "line": "#dfe3ea",
        "paper": "#ffffff",
        "panel": "#f5f7fa",
        "link": "#0b5cad",
        "bad": "#b3261e",
        "curves": ["#0072b2", "#d55e00", "#00875f", "#a23b8f", "#a87900", "#4b3fbf"],
        "heat": ["#fdf1d3", "#f8cb74", "#ee8f3f", "#cc3b22", "#6b0f2a"],
        "ends": {
            "failed": "#7a0c2e",
            "semantic": "#c8321f",
            "policy": "#e07b1a",
            "inconclusive": "#d8b400",
            "not judged": "#9c8fc0",
            "unsupported": "#eef0f3",
            "rounding": "#6ba3cc",
            "identical": "#d3e8dc",
        },
    },
    "dark": {
        "ink": "#e7eaf0",
        "soft": "#9aa5b8",
        "line": "#313a4a",
        "paper": "#12161e",
        "panel": "#1a202b",
        "link": "#7ab8f5",
        "bad": "#ff8a80",
        "curves": ["#5ab4f0", "#ff8f4d", "#35c99a", "#e58bd2", "#e6c34d", "#a8a0ff"],
        "heat": ["#3a2b1c", "#7a4a1e", "#c2661f", "#ff9a4d", "#ffe9c9"],
        "ends": {
            "failed": "#ff5c8a",
            "semantic": "#f2594b",
            "policy": "#f0953f",
            "inconclusive": "#e6c34d",
            "not judged": "#8478b0",
            "unsupported": "#1f2631",
            "rounding": "#4f8fbd",
            "identical": "#23503f",
        },
    },
}

_FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "DejaVu Sans", sans-serif'


def config(theme: str) -> Spec:
    """How everything looks that no row says."""
    colours = THEMES[theme]
    axis = {
        "labelColor": colours["soft"],
        "titleColor": colours["soft"],
        "gridColor": colours["line"],
        "domainColor": colours["line"],
        "tickColor": colours["line"],
        "labelFontSize": 12,
        "titleFontSize": 12,
        "titleFontWeight": "normal",
        "labelLimit": 0,
    }
    return {
        "font": _FONT,
        "background": None,
        "view": {"stroke": None},
        "axis": axis,
        "legend": {key: axis[key] for key in ("labelColor", "titleColor", "labelFontSize", "titleFontSize")}
        | {"titleFontWeight": "normal", "gradientThickness": 10, "gradientLength": 200},
        "range": {"heatmap": colours["heat"]},
        "rect": {"stroke": colours["paper"], "strokeWidth": 1},
    }


_DECADES = "format(datum.value, datum.value >= 0.001 && datum.value < 10000 ? '~g' : '.0e')"

_OPACITY = {
    "condition": {"test": "isValid(lit) && datum.curve !== lit", "value": 0.1},
    "field": "opacity",
    "type": "quantitative",
    "scale": None,
}

CURVES: Spec = {
    "description": "a figure a layer, a line a curve, on a logarithmic scale with a floor for zero",
    "width": "container",
    "height": 320,
    "data": {"name": "rows", "values": []},
    "params": [
        {"name": "floor", "value": 1e-9},
        {"name": "ceiling", "value": 1},
        {"name": "ticks", "value": []},
        {"name": "lit", "value": None},
    ],
    "encoding": {
        "x": {"field": "layer", "type": "quantitative", "title": "layer", "scale": {"nice": False}},
        "y": {
            "field": "height",
            "type": "quantitative",
            "title": None,
            "scale": {
                "type": "log",
                "nice": False,
                "domainMin": {"expr": "floor"},
                "domainMax": {"expr": "ceiling"},
            },
            "axis": {"values": {"expr": "ticks"}, "labelExpr": f"datum.value <= floor ? '0' : {_DECADES}"},
        },
        "color": {"field": "colour", "type": "nominal", "scale": None, "legend": None},
        "detail": {"field": "curve"},
    },
    "layer": [
        {
            "transform": [{"filter": "!datum.bad"}],
            "mark": {"type": "line", "strokeWidth": 2, "strokeJoin": "round"},
            "encoding": {
                "strokeDash": {
                    "field": "dashed",
                    "type": "nominal",
                    "scale": {"domain": [False, True], "range": [[1, 0], [6, 4]]},
                    "legend": None,
                },
                "opacity": _OPACITY,
            },
        },
        {
            "transform": [{"filter": "!datum.bad"}],
            "mark": {"type": "circle", "size": 34, "tooltip": {"content": "data"}},
            "encoding": {"opacity": _OPACITY},
        },
        {
            "transform": [{"filter": "datum.bad"}],
            "mark": {"type": "text", "text": "×", "fontSize": 16, "tooltip": {"content": "data"}},
        },
    ],
}
"""Rows: `curve`, `layer`, `height` (`value`, or the floor for 0 and the ceiling for what is not finite), `bad`,
`colour`, `dashed`, `opacity`."""

_CELL = {"type": "rect", "tooltip": {"content": "data"}, "invalid": None}

HEAT: Spec = {
    "description": "a figure of two categories as colour, on a logarithmic scale",
    "width": "container",
    "height": {"step": 20},
    "autosize": {"type": "fit-x", "contains": "padding"},
    "data": {"name": "rows", "values": []},
    "params": [
        {"name": "low", "value": 0.01},
        {"name": "high", "value": 1},
        {"name": "zero", "value": "#ffffff"},
        {"name": "bad", "value": "#000000"},
    ],
    "encoding": {
        "x": {"field": "x", "type": "ordinal", "sort": None, "title": None, "axis": {"labelOverlap": True}},
        "y": {"field": "y", "type": "ordinal", "sort": None, "title": None},
    },
    "layer": [
        {
            "mark": _CELL,
            "encoding": {
                "color": {
                    "condition": [
                        {"test": "datum.kind === 'zero'", "value": {"expr": "zero"}},
                        {"test": "datum.kind === 'bad'", "value": {"expr": "bad"}},
                    ],
                    "field": "scaled",
                    "type": "quantitative",
                    "scale": {
                        "type": "log",
                        "nice": False,
                        "clamp": True,
                        "range": "heatmap",
                        "interpolate": "rgb",
                        "domainMin": {"expr": "low"},
                        "domainMax": {"expr": "high"},
                    },
                    "legend": {
                        "orient": "top",
                        "title": None,
                        "format": ".2~g",
                        "values": {"expr": "[low, sqrt(low * high), high]"},
                    },
                },
            },
        },
        {
            "transform": [{"filter": "datum.text"}],
            "mark": {"type": "text", "fontSize": 12, "invalid": None},
            "encoding": {
                "text": {"field": "text", "type": "nominal"},
                "color": {"field": "ink", "type": "nominal", "scale": None},
            },
        },
    ],
}
"""Rows: `x`, `y`, `kind` (`value`, `zero` or `bad`: not finite), `scaled` (the value; of the two other kinds any above
0), `text` and its colour `ink`."""

NAMED: Spec = HEAT | {
    "description": "a word of two categories as colour",
    "params": [],
    "layer": [
        {"mark": _CELL, "encoding": {"color": {"field": "colour", "type": "nominal", "scale": None, "legend": None}}},
        HEAT["layer"][1],
    ],
}
"""Rows: `x`, `y`, `colour`, `text` and its colour `ink`."""

SPECS = {"curves": CURVES, "heat": HEAT, "named": NAMED}


def style_variables() -> str:
    """The themes' colours as variables of a style sheet."""
    light, dark = (";".join(_variables(colours)) for colours in THEMES.values())
    return f":root{{{light}}}\n@media (prefers-color-scheme: dark){{:root{{{dark}}}}}\n"


def _variables(colours: dict[str, Any]) -> list[str]:
    plain = [f"--{name}:{value}" for name, value in colours.items() if isinstance(value, str)]
    curves = [f"--c{i}:{value}" for i, value in enumerate(colours["curves"])]
    ends = [f"--{name.replace(' ', '-')}:{value}" for name, value in colours["ends"].items()]
    return [*plain, *curves, *ends]
