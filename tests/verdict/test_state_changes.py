from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweeper.verdict.state_changes import provenance


def _pair() -> tuple[nn.Linear, nn.Linear]:
    torch.manual_seed(0)
    reference = nn.Linear(5, 2, bias=False)
    return reference, copy.deepcopy(reference)


def _rounded(weight: Tensor) -> None:
    weight.copy_(weight.bfloat16())


def _rounded_in_its_first_piece(weight: Tensor) -> None:
    weight.view(-1)[:3] = weight.view(-1)[:3].bfloat16().float()


def _other_in_its_last_piece(weight: Tensor) -> None:
    weight.copy_(weight.bfloat16())
    weight[1, 4] += 1


@pytest.mark.parametrize("elements", [1, 3, 100])
@pytest.mark.parametrize(
    ("change", "dtype"),
    [(_rounded, torch.bfloat16), (_rounded_in_its_first_piece, None), (_other_in_its_last_piece, None)],
)
def test_pieces_of_a_tensor_are_judged_together(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Tensor], None], dtype: torch.dtype | None, elements: int
) -> None:
    monkeypatch.setattr("sweeper.models.state._CHUNK", {"cpu": elements})
    reference, candidate = _pair()
    change(candidate.weight.data)
    for left, right in ((reference, candidate), (candidate, reference)):
        found = provenance(left, right)
        (each,) = [*found.rounded.values(), *found.other.values()]
        assert each.rounded_to is dtype


def test_one_side_rounded_here_and_the_other_there_is_no_rounding() -> None:
    reference, candidate = _pair()
    reference.weight.data[0] = reference.weight.data[0].bfloat16().float()
    candidate.weight.data[1] = candidate.weight.data[1].bfloat16().float()
    assert list(provenance(reference, candidate).other) == ["weight"]


@pytest.mark.parametrize("left", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("right", [torch.bfloat16, torch.float16])
def test_two_dtypes_are_explained_in_pieces_too(
    monkeypatch: pytest.MonkeyPatch, left: torch.dtype, right: torch.dtype
) -> None:
    monkeypatch.setattr("sweeper.models.state._CHUNK", {"cpu": 3})
    model, _ = _pair()
    found = provenance(copy.deepcopy(model).to(left), copy.deepcopy(model).to(right))
    assert not found.other
    assert len(found.asked) == (left is not right)


class Largest(TorchDispatchMode):
    """The most elements that a float64 result had."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.dtype is torch.float64:
                self.elements = max(self.elements, leaf.numel())
        return result


def test_no_whole_tensor_is_doubled() -> None:
    reference = nn.Embedding(2**10, 2**9)
    for candidate in (copy.deepcopy(reference).bfloat16(), copy.deepcopy(reference)):
        candidate.weight.data[-1, -1] += 1
        with Largest() as seen:
            assert list(provenance(reference, candidate).other) == ["weight"]
        assert 0 < seen.elements <= 2**16
