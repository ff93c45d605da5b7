"""What is too large to be kept is observed a part at a time: the figures are the same, and what is held is bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.comparator import observation
from sweeper.comparator.observer import Observer
from sweeper.comparator.side import sides
from sweeper.verdict.comparison import Comparison, compare_models
from sweeper.verdict.module_runs import Kept, capture
from sweeper.verdict.reference_evidence import nbytes
from tests.small_models import explicit, llama, packed, padded_left


def policy() -> Comparison:
    return compare_models(llama(torch.bfloat16), llama().to(torch.bfloat16), padded_left())


def rounding() -> Comparison:
    return compare_models(llama(), llama(torch.bfloat16), padded_left())


def layouts() -> Comparison:
    """One model on both sides, in two layouts."""
    model = llama(attention="sdpa")
    return compare_models(model, model, explicit(padded_left()), packed())


def single_texts() -> Comparison:
    model = llama()
    padded = padded_left()
    rows = [{name: tensor[row : row + 1] for name, tensor in padded.items()} for row in range(2)]
    return compare_models(model, llama(torch.bfloat16), rows, padded)


def found(compare: Callable[[], Comparison]) -> Any:
    comparison = compare()
    explanation = comparison.explain() if compare is policy else None
    return (
        comparison.verdict,
        comparison.measured,
        comparison.first_divergence,
        comparison.native.modules,
        comparison.native.unaligned,
        comparison.replay_trace and comparison.replay_trace.modules,
        comparison.floor,
        list(comparison.own.items()),
        explanation and (explanation.cause, explanation.since),
    )


@pytest.mark.parametrize("compare", [policy, rounding, layouts, single_texts])
def test_parts_give_the_figures_of_the_whole(
    compare: Callable[[], Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = found(compare)
    monkeypatch.setattr(observation, "WINDOW_BYTES", 10_000 if compare is policy else 1)
    for part, expected in zip(found(compare), whole, strict=True):
        assert repr(part) == repr(expected)


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(40))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = hidden + layer(hidden).tanh()
        return hidden[..., :1]


@pytest.mark.parametrize("tokens", [16, 64, 256])
def test_what_is_kept_does_not_grow_with_the_tokens(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of one run is so many bytes, one module's output and input at least."""
    most, kept = 2 * 64 * 64 * 8, []

    def count(observer: Observer) -> int:
        return sum(tensor.nbytes for rows in observer.modules.values() for tensor in [*rows.outputs, *rows.inputs])

    class Counted(Observer):
        def hook_with_inputs(self, *arguments: Any) -> None:
            super().hook_with_inputs(*arguments)
            kept.append(count(self))

    monkeypatch.setattr(observation, "WINDOW_BYTES", most)
    monkeypatch.setattr(observation, "Observer", Counted)
    torch.manual_seed(0)
    reference, candidate = Wide(), Wide()
    candidate.load_state_dict(reference.state_dict())
    with torch.no_grad():
        candidate.layers[-1].weight += 1e-3  # where it takes all parts to find it
    comparison = compare_models(reference, candidate, {"hidden": torch.randn(1, tokens, 64)})
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.module == "layers.39"
    assert max(kept) <= most + 2 * tokens * 64 * 8


def test_what_modules_are_run_on_is_captured_in_parts_that_are_bounded() -> None:
    model, padded = llama(), padded_left()
    side, _ = sides(model, model, padded)
    whole = capture(side)
    names, parts = None, []
    while names is None or names:
        captured = capture(side, names, most_bytes=20_000)
        parts.append(captured)
        names = set(captured.left)
    assert len(parts) > 3
    assert whole.left == ()
    found = {key: call for part in parts for key, call in part.kept.items()}
    assert found.keys() == whole.kept.keys()
    assert sum(len(part.kept) for part in parts) == len(whole.kept)
    for key, call in whole.kept.items():
        assert all(map(torch.equal, floats_of(call), floats_of(found[key]))), key
    most = max(nbytes(call.output) + nbytes(call.args) + nbytes(call.kwargs) for call in whole.kept.values())
    assert all(nbytes([call.output for call in part.kept.values()]) <= 20_000 + 2 * most for part in parts)


def floats_of(call: Kept) -> list[Tensor]:
    return [leaf for leaf in [*call.output, *tree_leaves((call.args, call.kwargs))] if isinstance(leaf, Tensor)]
