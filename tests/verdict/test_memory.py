"""Running out of memory is never evidence, wherever it happens."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sweeper.devices import out_of_memory, suppressed
from sweeper.verdict.comparison import compare_models
from tests.small_models import hidden, llama, padded_left

ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB"),
    MemoryError("no room"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
]


class Short(nn.Module):
    """Runs out of memory when `when` says so of what it is given and of how often it ran."""

    def __init__(self, error: Exception, when: Callable[[Tensor, int], bool]) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)
        self.error, self.when, self.runs = error, when, [0]

    def forward(self, hidden: Tensor) -> Tensor:
        self.runs[0] += 1
        if self.when(hidden, self.runs[0]):
            raise self.error
        return self.linear(hidden)


def pair(error: Exception, when: Callable[[Tensor, int], bool]) -> tuple[Any, Any]:
    torch.manual_seed(0)
    reference = Short(error, lambda *_: False).eval()
    candidate = copy.deepcopy(reference)
    candidate.error, candidate.when, candidate.runs = error, when, [0]
    with torch.no_grad():
        candidate.linear.weight *= 1 + 2**-20
    return reference, candidate


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_ends_a_comparison_in_the_replay(error: Exception) -> None:
    reference, candidate = pair(error, lambda given, _: given.dtype is torch.float64)
    with pytest.raises(type(error)) as raised:
        compare_models(reference, candidate, hidden())
    assert raised.value is error


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_ends_a_comparison_in_another_shape_of_the_batch(error: Exception) -> None:
    """Where any other error says that a model takes one batch size only."""
    reference, candidate = pair(error, lambda *_: False)
    reference.when = lambda given, _: len(given) == 1
    with pytest.raises(type(error)):
        compare_models(reference, candidate, hidden())
    reference.error = RuntimeError("made for two rows")
    assert compare_models(reference, candidate, hidden()).verdict.kind == "semantic"


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_it_ends_an_explanation(error: Exception) -> None:
    reference, candidate = pair(error, lambda *_: False)
    comparison = compare_models(reference, candidate, hidden())
    assert comparison.verdict.kind == "semantic"
    candidate.when = lambda *_: True
    with pytest.raises(type(error)):
        comparison.explain()


def test_only_what_says_so_counts() -> None:
    assert all(map(out_of_memory, ERRORS))
    assert not out_of_memory(RuntimeError("expected mat1 and mat2 to have the same dtype"))
    assert not out_of_memory(ValueError("DefaultCPUAllocator"))
    with suppressed(RuntimeError):
        raise RuntimeError("anything else")
    with pytest.raises(MemoryError), suppressed(Exception):
        raise MemoryError


class Fails(TorchDispatchMode):
    """The n-th operation finds no memory."""

    def __init__(self, fails: int) -> None:
        super().__init__()
        self.left = fails

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.left -= 1
        if self.left == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("fails", range(10, 2500, 207))
def test_wherever_it_happens_models_are_left_as_they_were(fails: int) -> None:
    models = llama(torch.bfloat16), llama().to(torch.bfloat16)
    states = [(tensor, tensor.clone()) for model in models for tensor in [*model.parameters(), *model.buffers()]]
    with pytest.raises(torch.OutOfMemoryError), Fails(fails):
        compare_models(*models, padded_left()).explain()
    for model in models:
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    for tensor, before in states:
        assert tensor.dtype is before.dtype
        assert torch.equal(tensor, before)
