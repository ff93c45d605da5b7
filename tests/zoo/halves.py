"""The whole zoo in its two halves: the tuning half may be looked at while thresholds are chosen, the other may not."""

from __future__ import annotations

from tests.zoo import held_out, language, others, serving, tuning
from tests.zoo.pairs import Pair

HALVES: dict[str, list[Pair]] = {
    "tuning": [*tuning.PAIRS, *language.TUNING, *others.TUNING, *serving.TUNING],
    "held_out": [*held_out.PAIRS, *language.HELD_OUT, *others.HELD_OUT, *serving.HELD_OUT],
}
