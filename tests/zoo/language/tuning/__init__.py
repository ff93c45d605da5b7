"""The half of the language pairs that may be looked at while thresholds are chosen."""

from __future__ import annotations

from tests.zoo.language.tuning import absolute, encoder_decoders, encoders, mixtures, rotary

PAIRS = [pair for group in (rotary, absolute, mixtures, encoders, encoder_decoders) for pair in group.PAIRS]
