"""Hands pairs to `compare_models` and marks the answers."""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass
from importlib.util import find_spec

import torch

from tests.zoo.pairs import HARMLESS, STATE, Pair

TRACEBACK = "traceback"


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the verdict said of a pair.

    Attributes:
        kind: the verdict, or `traceback`.
        cause: the sentence that `explain` gave; empty for harmless pairs, which are not explained.
    """

    pair: Pair
    kind: str
    cause: str

    @property
    def wrong(self) -> bool:
        """A harmful pair that was waved through, or a harmless one that was raised."""
        return self.kind in (HARMLESS if self.pair.answer == "harmful" else STATE)

    @property
    def inconclusive(self) -> bool:
        return self.kind == "inconclusive"

    @property
    def failed(self) -> bool:
        return self.kind == TRACEBACK

    @property
    def named(self) -> bool:
        """The sentence holds one of the words that name the change."""
        return any(word in self.cause.lower() for word in self.pair.cause)


def missing_packages(pair: Pair) -> list[str]:
    """The packages that a pair needs and that are not here."""
    return [package for package in pair.needs if _absent(package)]


def _absent(package: str) -> bool:
    try:
        return find_spec(package) is None
    except ModuleNotFoundError:  # the package that it lies in
        return True


@functools.cache
def examine(pair: Pair) -> Mark:
    """Compare the pair's models; explain the difference if it is harmful."""
    from sweeper import compare_models

    random.seed(0)
    torch.manual_seed(0)
    models = pair.build()
    try:
        comparison = compare_models(models.reference, models.candidate, models.inputs, models.candidate_inputs)
        cause = comparison.explain().cause if pair.answer == "harmful" else ""
    except Exception as error:
        return Mark(pair=pair, kind=TRACEBACK, cause=f"{type(error).__name__}: {error}".splitlines()[0])
    return Mark(pair=pair, kind=str(comparison.verdict.kind), cause=cause)
