"""Monte Carlo arithmetic inside a module: how large nudges are, that large products come out the same in parts, and
what is left out where few nudges decide."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweeper.inputs.calls import call_of
from sweeper.verdict import monte_carlo
from sweeper.verdict.first_divergence import rel_l2
from sweeper.verdict.module_floor import Noise
from sweeper.verdict.module_runs import Given
from sweeper.verdict.monte_carlo import OperationNoise

TOKENS, HIDDEN, VOCABULARY = 24, 32, 200


def nudged(head: nn.Linear, hidden: Tensor, **options: Any) -> Tensor:
    with torch.no_grad(), OperationNoise(0, [hidden], head, **options):
        return head(hidden)


def head_and_hidden(dtype: torch.dtype) -> tuple[nn.Linear, Tensor]:
    torch.manual_seed(5)
    return nn.Linear(HIDDEN, VOCABULARY, bias=False, dtype=dtype), torch.randn(TOKENS, HIDDEN, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_nudged_by_its_epsilon(dtype: torch.dtype) -> None:
    head, hidden = head_and_hidden(dtype)
    exact, eps = hidden.double() @ head.weight.detach().double().T, torch.finfo(dtype).eps
    own = rel_l2(exact, head(hidden).detach())  # counts twice: as it is, and once more with other signs
    assert 0.4 * eps < rel_l2(exact, nudged(head, hidden)) < 0.8 * eps + 2 * own  # uniform within one epsilon: 0.58


class LargestInFloat64(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation gives in float64."""

    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.dtype is torch.float64]
        self.elements = max([self.elements, *(leaf.numel() for leaf in made)])
        return result


@pytest.mark.parametrize("shape", [(TOKENS, HIDDEN), (2, TOKENS // 2, HIDDEN)])
def test_a_large_product_is_made_in_parts(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    head, hidden = head_and_hidden(torch.bfloat16)
    hidden = hidden.view(shape)
    with LargestInFloat64() as whole:
        expected = nudged(head, hidden, state_eps=2.0**-8)
    assert whole.elements == HIDDEN * VOCABULARY
    monkeypatch.setattr(monte_carlo, "_LARGE_FACTOR", HIDDEN * 7)  # 28 parts of 7 columns, the last of 4
    with LargestInFloat64() as parts:
        found = nudged(head, hidden, state_eps=2.0**-8)
    assert parts.elements == TOKENS * VOCABULARY  # the product itself
    torch.testing.assert_close(found, expected, rtol=2.0**-8, atol=0.0)
    assert (found == expected).double().mean() > 0.99


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(HIDDEN, HIDDEN))

    def forward(self, hidden: Tensor) -> list[Tensor]:
        gram = self.weight @ self.weight
        return [gram, hidden * 1.5, hidden @ gram]


def test_of_few_nudges_only_products_with_activations_get_some() -> None:
    module, hidden = Products(), torch.rand(TOKENS, HIDDEN)
    with torch.no_grad():
        plain = module(hidden)
        with OperationNoise(0, [hidden], module, few=True):
            few = module(hidden)
        with OperationNoise(0, [hidden], module):
            everything = module(hidden)
    assert list(map(torch.equal, plain, few)) == [True, True, False]
    assert list(map(torch.equal, plain, everything)) == [False] * 3
    assert rel_l2(plain[2], few[2]) < torch.finfo(torch.float32).eps


def floor_of(enough: float) -> tuple[float, int]:
    """A head's floor, and how many elements its largest tensor in float64 had."""
    head, hidden = head_and_hidden(torch.bfloat16)
    call = call_of({"input_ids": torch.arange(TOKENS)[None]}, head, None)
    with torch.no_grad(), LargestInFloat64() as largest:
        output: list[Tensor | None] = [head(hidden)]
        floor = Noise(state_eps=2.0**-8).floor(head, lambda: Given((hidden,), {}, [hidden]), output, call, enough)
    return floor, largest.elements


def test_a_floor_that_few_nudges_bring_far_enough_runs_no_product_in_float64() -> None:
    whole, in_float64 = floor_of(math.inf)
    bound, cheap = floor_of(whole / 4)
    assert in_float64 == HIDDEN * VOCABULARY
    assert cheap < in_float64
    assert whole / 2 < bound < whole
    assert floor_of(whole * 4) == (whole, in_float64)  # what they do not reach is measured as ever


def test_a_product_that_is_exact_has_no_error_to_scale() -> None:
    """Frequencies in bfloat16 times positions are exact in float32; so is a product of zeros."""
    head = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.eye(3, 4))
    hidden = torch.arange(8.0).view(2, 4)
    for options in ({"products_only": True}, {}):
        found = nudged(head, hidden, **options)
        torch.testing.assert_close(found, hidden[:, :3], rtol=1.5 * 2.0**-23, atol=0.0)  # rounded once more
    assert torch.equal(nudged(head, hidden, products_only=True), hidden[:, :3])
    assert torch.equal(nudged(head, torch.zeros(2, 4)), torch.zeros(2, 3))
