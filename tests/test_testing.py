"""A guard that could not judge did not pass, and says so in a sentence of the caller's own test."""

from __future__ import annotations

import copy
import traceback

import pytest
import torch
from torch import Tensor, nn

from sweeper.testing import assert_same_function
from tests.small_models import attention, hidden


class RefusesFloat64(nn.Module):
    """Has no replay."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, hidden: Tensor) -> Tensor:
        if hidden.dtype is torch.float64:
            raise RuntimeError("no kernel for float64")
        return self.linear(hidden)


def refusing() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    reference = RefusesFloat64().eval()
    return reference, copy.deepcopy(reference).bfloat16()


def test_what_could_not_be_judged_fails_unless_the_caller_allows_it() -> None:
    reference, candidate = refusing()
    inputs = hidden(), hidden(torch.bfloat16)
    with pytest.raises(AssertionError, match="not known to be the same function: no replay in float64: RuntimeError"):
        assert_same_function(reference, candidate, *inputs)
    assert_same_function(reference, candidate, *inputs, allow_inconclusive=True)


def test_another_function_is_not_let_through_with_the_inconclusive() -> None:
    candidate = attention()
    candidate.scale = 0.26
    with pytest.raises(AssertionError, match=r"not the same function: Attention\.scale: 0\.25 -> 0\.26"):
        assert_same_function(attention(), candidate, hidden(), allow_inconclusive=True)


def test_the_frames_of_the_guard_are_hidden() -> None:
    candidate = attention()
    candidate.scale = 0.26
    with pytest.raises(AssertionError) as raised:
        assert_same_function(attention(), candidate, hidden())
    shown = [frame for frame in raised.traceback if not frame.ishidden(raised)]
    assert [frame.path.name for frame in shown] == ["test_testing.py"]
    assert traceback.format_exception_only(raised.value)[0].startswith("AssertionError: not the same function: ")
