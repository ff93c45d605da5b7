"""Hands pairs to `compare_models` and marks the answers."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from tests.zoo.pairs import HARMLESS, STATE, Pair


@dataclass(frozen=True, kw_only=True)
class Mark:
    """What the verdict said of a pair.

    Attributes:
        kind: the verdict.
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
    def named(self) -> bool:
        """The sentence holds one of the words that name the change."""
        return any(word in self.cause.lower() for word in self.pair.cause)


@functools.cache
def examine(pair: Pair) -> Mark:
    """Compare the pair's models; explain the difference if it is harmful."""
    from sweeper.verdict.comparison import compare_models

    models = pair.build()
    comparison = compare_models(models.reference, models.candidate, models.inputs, models.candidate_inputs)
    cause = comparison.explain().cause if pair.answer == "harmful" else ""
    return Mark(pair=pair, kind=str(comparison.verdict.kind), cause=cause)
