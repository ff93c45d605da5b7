"""Pairs of models that are not language models, and of objects around models.

They were written without sight of the verdict's code and of what it says of any pair. The draw is that of
`tests.zoo.pairs.split` with a seed of its own: the names of every kind (the part before the slash) are sorted, shuffled
and dealt in two, so both halves hold every kind. `TUNING` may be looked at while thresholds are chosen, `HELD_OUT` may
not; both lie in the same files, as a draw over a kind's members leaves no file whole.
"""

from __future__ import annotations

from tests.zoo.others import adapters, audio, convolutions, images, outputs, sentences, sequences, wrappers
from tests.zoo.pairs import split

SPLIT_SEED = 20252

_FILES = (images, audio, convolutions, sequences, outputs, sentences, adapters, wrappers)
PAIRS = [pair for file in _FILES for pair in file.PAIRS]
_HALVES = split((pair.name for pair in PAIRS), SPLIT_SEED)
TUNING, HELD_OUT = ([pair for pair in PAIRS if pair.name in half] for half in _HALVES)
