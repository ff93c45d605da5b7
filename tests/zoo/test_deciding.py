"""What a cell's verdict leaves out changes no kind: the tuning half with only what decides."""

from __future__ import annotations

import random

import pytest
import torch

from sweeper.comparator.side import sides
from sweeper.verdict.comparison import compare_sides
from tests.zoo.each_pair import each_pair
from tests.zoo.examine import missing_packages
from tests.zoo.pairs import Pair
from tests.zoo.tuning import PAIRS


@each_pair(PAIRS)
def test_only_what_decides_gives_a_right_kind(pair: Pair) -> None:
    if missing := missing_packages(pair):
        pytest.skip(f"needs {', '.join(missing)}")
    random.seed(0)
    torch.manual_seed(0)
    models = pair.build()
    both = sides(models.reference, models.candidate, models.inputs, models.candidate_inputs)
    assert compare_sides(*both, full=False).verdict.kind in pair.allowed
