"""Pairs of the axes `batch`, `decode` and `compile`: a text alone or in company, whole or behind a cache, compiled.

They were written without sight of what the verdict says of any. The draw is that of `tests.zoo.pairs.split` with a seed
of its own, chosen before it: both halves hold every kind. `TUNING` may be looked at while thresholds are chosen,
`HELD_OUT` may only be counted.
"""

from __future__ import annotations

from tests.zoo.pairs import split
from tests.zoo.serving import batches, compiling, decoding

SPLIT_SEED = 1717

_DRAWN = ([pair for file in (batches, decoding, compiling) for pair in file.PAIRS], decoding.QUANTISED)
PAIRS = [pair for pairs in _DRAWN for pair in pairs]
_HALVES = [split((pair.name for pair in pairs), SPLIT_SEED) for pairs in _DRAWN]
TUNING, HELD_OUT = ([pair for pair in PAIRS if any(pair.name in halves[half] for halves in _HALVES)] for half in (0, 1))
