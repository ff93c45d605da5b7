"""Compiled code put back: as it is written, one compiled module at a time or one option of the compiler at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from sweeper.comparator.side import Side, uncompiled_side
from sweeper.models.axis import Switch
from sweeper.models.compiled import NAME, OFF, as_written, compiled_modules, compiles, is_compiled
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.repeatability import SIDES


def compiled_counterfactuals(pair: Pair, names: Sequence[str]) -> list[Counterfactual]:
    """These sides' code with one part of the compiler less each time, in the end as it is written."""
    sides = dict(zip(SIDES, pair, strict=True))
    return [found for name in names for found in (*_options(sides[name], name), *_handed_over(sides[name], name))]


def handed_over_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """Models that are handed over compiled, as they are written; that of one side is tried first."""
    return [found for name, side in zip(SIDES, pair, strict=True) for found in _handed_over(side, name)][::-1]


def _options(side: Side, name: str) -> list[Counterfactual]:
    """The values of the axis on the way to having none, and none."""
    if not compiles(side.switches):
        return []
    ours = side.switches[NAME]
    what = "whose code is another function than what is written"
    return [
        Counterfactual(
            f"{NAME} of the {name}: {other.value} -> {ours.value}, {what}",
            other.fix,
            "compiled",
            _with(name, functools.partial(_under, other)),
        )
        for other in (*ours.halfway, OFF[NAME])
    ]


def _under(switch: Switch, side: Side) -> Side:
    return replace(side, switches={**side.switches, NAME: switch})


def _handed_over(side: Side, name: str) -> list[Counterfactual]:
    """A model with compiled code in it as it is written: all of it, and each of several compiled modules alone."""
    if not is_compiled(side.model):
        return []
    modules = compiled_modules(side.model)
    parts = tuple(_module(name, path) for path in modules) if len(modules) > 1 else ()
    title = f"torch.compile: the {name} runs compiled code{'' if parts else ', which can only be put back as a whole'}"
    fix = "call the model that is not compiled"
    return [Counterfactual(title, fix, "compiled", _with(name, uncompiled_side), parts=parts)]


def _module(name: str, path: str) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        side = dict(zip(SIDES, pair, strict=True))[name]
        with as_written(side.model.get_submodule(path)), _with(name, replace)(pair) as changed:
            yield changed

    what = path or "the model itself"
    title = f"torch.compile: {what} of the {name} runs compiled"
    return Counterfactual(title, f"do not compile {what}", "compiled", apply)


def _with(name: str, change: Callable[[Side], Side]) -> Callable[[Pair], AbstractContextManager[Pair]]:
    """The pair with one side changed."""

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        sides = dict(zip(SIDES, pair, strict=True))
        yield Pair(**{**sides, name: change(sides[name])})

    return apply
