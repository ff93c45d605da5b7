"""What a counterfactual is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, NamedTuple

from sweeper.comparator.side import Side

Group = Literal["state", "training", "code", "compiled", "inputs", "attention", "dtype", "switch", "pooling", "upcast"]


class Pair(NamedTuple):
    """Reference and candidate, with something put back."""

    reference: Side
    candidate: Side


@dataclass(frozen=True)
class Counterfactual:
    """One thing put back.

    Attributes:
        name: what differs, e.g. `buffer model.rotary_emb.inv_freq: rounded to bfloat16`.
        fix: what a user types to put it back.
        group: what kind of thing it is.
        apply: makes a context in which the pair has it put back; the models are as before afterwards.
        wide: it puts back many things at once, so it is tried after pairs of narrower ones.
        parts: narrower counterfactuals, tried when this one closes the difference.
    """

    name: str
    fix: str
    group: Group
    apply: Callable[[Pair], AbstractContextManager[Pair]]
    wide: bool = False
    parts: tuple[Counterfactual, ...] = ()
