"""Pairs of small language models of many families, written without sight of the verdict or of what it says of any.

A file holds the pairs of a group of families. Which of them may be looked at while thresholds are chosen (`TUNING`) and
which may not (`HELD_OUT`: only counts of it) was drawn by `split` with a seed of its own: every kind, the name before
the slash, is shuffled and dealt in two, and an odd one more goes to `TUNING`.
"""

from __future__ import annotations

from tests.zoo.language import absolute, encoder_decoders, encoders, mixtures, rotary
from tests.zoo.pairs import split

SEED = 5170
# Kinds whose candidate holds numbers that were computed from the reference's and rounded once more to be stored: a
# replay in float64 keeps that rounding, which is harmless.
STORED = frozenset({"merged_adapter", "folded_norm"})

PAIRS = [pair for group in (rotary, absolute, mixtures, encoders, encoder_decoders) for pair in group.PAIRS]

_TUNING_NAMES, _HELD_OUT_NAMES = split((pair.name for pair in PAIRS), seed=SEED)
TUNING = [pair for pair in PAIRS if pair.name in _TUNING_NAMES]
HELD_OUT = [pair for pair in PAIRS if pair.name in _HELD_OUT_NAMES]
