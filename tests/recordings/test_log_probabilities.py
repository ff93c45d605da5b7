"""Log-probabilities of a text's tokens, and how two programs' are apart."""

from __future__ import annotations

import math

import pytest
import torch

from sweeper.recordings.log_probabilities import log_probabilities, ratios

IDS = [[1, 2, 0], [2, 1]]


def test_each_token_has_that_of_the_row_before_it() -> None:
    logits_NV = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    found_N = log_probabilities(logits_NV, IDS)
    each = logits_NV.double().log_softmax(1)
    assert found_N[0].isnan()
    assert found_N[3].isnan()
    expected = [each[0, 2], each[1, 0], each[3, 1]]
    assert torch.equal(found_N[[1, 2, 4]], torch.stack(expected))


def test_ratios_tell_the_first_token_of_a_text_from_the_others() -> None:
    own_N = torch.tensor([math.nan, -1.0, -1.0, math.nan, -2.0])
    recorded_N = torch.tensor([math.nan, -1.5, -1.0, math.nan, -2.05])
    found = ratios(recorded_N, own_N, IDS)
    assert found.tokens == 3
    assert found.mean_abs == pytest.approx(0.55 / 3)
    assert found.ratio == pytest.approx(math.exp(0.55 / 3))
    assert found.outside == pytest.approx(1 / 3)  # exp(-0.05) is 0.951
    assert found.first == pytest.approx(0.275)
    assert found.later == 0


def test_a_token_that_one_side_alone_has_is_counted() -> None:
    own_N = torch.tensor([math.nan, -1.0, -1.0, math.nan, -2.0])
    recorded_N = torch.tensor([math.nan, -math.inf, -1.0, math.nan, -2.0])
    found = ratios(recorded_N, own_N, IDS)
    assert (found.tokens, found.one_sided, found.mean_abs) == (2, 1, 0)
