"""Monte Carlo arithmetic inside a module: how large nudges are, and that large products come out the same in parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sweeper.verdict import monte_carlo
from sweeper.verdict.first_divergence import rel_l2
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
