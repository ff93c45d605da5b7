"""A test for each of some pairs, by its name."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.zoo.pairs import Pair


def each_pair(pairs: Sequence[Pair]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("pair", pairs, ids=lambda pair: pair.name)
