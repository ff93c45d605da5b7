from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweeper.verdict.comparison import compare_models
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


class Neighbours(nn.Module):
    """Adds to each feature what a sparse table says of its neighbour, as graph networks do."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("table", table)

    def forward(self, hidden: Tensor) -> Tensor:
        return (self.table @ self.layer(hidden[0]).T).T[None]


TABLE = torch.eye(8) + torch.diag(torch.full((7,), 0.3), 1)


@pytest.mark.parametrize(
    ("other", "kind", "cause"),
    [
        (TABLE, "identical", ""),
        (TABLE.bfloat16().float(), "policy", "buffer table: rounded to bfloat16"),
        (1.5 * TABLE, "semantic", "buffer table: 15 of 64 values differ, by at most 0.5"),
    ],
    ids=["same", "rounded", "other values"],
)
def test_a_sparse_table_is_compared_by_its_numbers(other: Tensor, kind: str, cause: str) -> None:
    reference, candidate = Neighbours(TABLE.to_sparse()).eval(), Neighbours(other.to_sparse()).eval()
    candidate.layer.load_state_dict(reference.layer.state_dict())
    comparison = compare_models(reference, candidate, {"hidden": torch.randn(1, 5, 8)})
    assert comparison.verdict.kind == kind
    if cause:
        assert comparison.explain().cause.startswith(cause)
    assert torch.equal(candidate.table.to_dense(), other)
    assert candidate.table.layout is torch.sparse_coo


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_a_table_of_which_torch_has_no_float64_run_says_so() -> None:
    """A CSR tensor's values stay float32 when it is cast: torch refuses the product."""
    reference, candidate = Neighbours(TABLE.to_sparse_csr()).eval(), Neighbours(TABLE.to_sparse_csr()).eval()
    inputs = {"hidden": torch.randn(1, 5, 8)}
    candidate.layer.load_state_dict(reference.layer.state_dict())
    assert compare_models(reference, candidate, inputs).verdict.kind == "identical"
    with torch.no_grad():
        candidate.layer.weight[0, 0] += 1
    comparison = compare_models(reference, candidate, inputs)
    assert comparison.verdict.kind == "inconclusive"
    assert "no replay in float64" in comparison.verdict.reason
    assert comparison.explain().cause.startswith("parameter layer.weight: 1 of 64 values differ")
