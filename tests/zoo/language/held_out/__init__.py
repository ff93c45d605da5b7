"""The half of the language pairs that is kept aside while thresholds are chosen: only counts of it may be looked at."""

from __future__ import annotations

from tests.zoo.language.held_out import absolute, encoder_decoders, encoders, mixtures, rotary

PAIRS = [pair for group in (rotary, absolute, mixtures, encoders, encoder_decoders) for pair in group.PAIRS]
