"""Pairs of the axes `batch`, `decode` and `compile`: a text alone or in company, whole or behind a cache, compiled.

They were written without sight of what the verdict says of any. The draws are those of `tests.zoo.pairs.split`, with
seeds of their own that were chosen before: both halves hold every kind. What came later is drawn by itself, so that no
pair moves to the other half. `TUNING` may be looked at while thresholds are chosen, `HELD_OUT` may only be counted.
"""

from __future__ import annotations

from tests.zoo.pairs import split
from tests.zoo.serving import batches, compiling, decoding, passes

SPLIT_SEED = 1717
LATER_SEED = 1718

_DRAWN = (
    ([pair for file in (batches, decoding, compiling) for pair in file.PAIRS], SPLIT_SEED),
    (decoding.QUANTISED, SPLIT_SEED),
    (passes.PAIRS, LATER_SEED),
)
PAIRS = [pair for pairs, _ in _DRAWN for pair in pairs]
_HALVES = [split((pair.name for pair in pairs), seed) for pairs, seed in _DRAWN]
TUNING, HELD_OUT = ([pair for pair in PAIRS if any(pair.name in halves[half] for halves in _HALVES)] for half in (0, 1))
