"""What is too large to be kept is observed a part at a time: the figures are the same, and what is held is bounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.comparator import observation
from sweeper.comparator.observer import Observer
from sweeper.comparator.side import Side, sides
from sweeper.verdict.comparison import Comparison, compare_models
from sweeper.verdict.examination import Examination
from sweeper.verdict.module_runs import Captured, Kept, capture
from sweeper.verdict.own_errors import Natively
from sweeper.verdict.reference_evidence import nbytes
from sweeper.verdict.state_changes import provenance
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


def test_a_part_in_the_first_layers_does_not_run_the_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of the two sides, once one run of each has told how much there is."""
    monkeypatch.setattr(observation, "WINDOW_BYTES", 1000)
    reference, candidate = sides(llama(), llama(torch.bfloat16), padded_left())
    ran: Counter[str] = Counter()
    for side, which in ((reference, "reference"), (candidate, "candidate")):
        for name in ("model.embed_tokens", "lm_head"):
            module = side.model.get_submodule(name)
            module.register_forward_hook(lambda *_, name=f"{which} {name}": ran.update([name]))
    found = Natively(reference, candidate, provenance(reference.model, candidate.model)).examine()
    assert {"lm_head", ""} < found.keys()
    for which in ("reference", "candidate"):
        assert 3 * ran[f"{which} lm_head"] < ran[f"{which} model.embed_tokens"], ran


@pytest.mark.parametrize(("free", "waits"), [(2**40, False), (200_000, True)])
def test_a_part_waits_on_the_host_where_it_takes_much_of_what_is_free(
    free: int, waits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved: list[str] = []
    monkeypatch.setattr(observation, "WINDOW_BYTES", 10_000)
    monkeypatch.setattr(observation, "free_bytes", lambda _device: free)
    monkeypatch.setattr(observation, "_on_host", lambda rows: moved.append(rows.module_type) or rows)
    model = llama()
    observed = observation.observe(sides(model, model, padded_left())[0])
    assert 0 < len(observed.modules) < len(observed.seen)
    assert bool(moved) is waits


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


class Reused(nn.Module):
    """Its first layer is called again behind the last."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(6))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in [*self.layers, self.layers[0]]:
            hidden = hidden + layer(hidden).tanh()
        return hidden


class Cautious(Reused):
    """Leaves out a layer that raises, whatever it raises."""

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            try:
                hidden = hidden + layer(hidden).tanh()
            except Exception:
                return hidden
        return hidden


def in_parts(side: Side, most_bytes: int) -> list[Captured]:
    parts = [capture(side, most_bytes=most_bytes)]
    while parts[-1].left:
        parts.append(capture(side, calls=parts[-1].left, most_bytes=most_bytes))
    return parts


def hidden() -> dict[str, Tensor]:
    return {"hidden": torch.randn(1, 40, 64)}


def texts_alone() -> list[dict[str, Tensor]]:
    return [{name: tensor[row : row + 1] for name, tensor in padded_left().items()} for row in range(2)]


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        pytest.param(llama, padded_left, id="a batch"),
        pytest.param(llama, texts_alone, id="several calls"),
        pytest.param(Reused, hidden, id="a layer that is called again"),
        pytest.param(Cautious, hidden, id="a model that catches errors"),
    ],
)
def test_what_modules_are_run_on_is_captured_in_parts_that_are_bounded(
    model: Callable[[], nn.Module], inputs: Callable[[], Any]
) -> None:
    torch.manual_seed(0)
    made = model()
    side, _ = sides(made, made, inputs())
    whole = capture(side)
    parts = in_parts(side, 20_000)
    assert len(parts) > 3
    assert not whole.left
    found = {key: call for part in parts for key, call in part.kept.items()}
    assert found.keys() == whole.kept.keys()
    assert sum(len(part.kept) for part in parts) == len(whole.kept)
    for key, call in whole.kept.items():
        assert all(map(torch.equal, floats_of(call), floats_of(found[key]))), key
    most = max(nbytes(call.output) + nbytes(call.args) + nbytes(call.kwargs) for call in whole.kept.values())
    bound = 20_000 + 2 * len(side.calls) * most
    assert all(nbytes([call.output for call in part.kept.values()]) <= bound for part in parts)


def test_a_run_ends_behind_the_last_module_that_is_asked_for() -> None:
    """It goes on to its end where one of them is called again there, or not as often as before."""
    model = Reused()
    side, _ = sides(model, model, hidden())
    ran: list[str] = []
    for name, layer in model.layers.named_children():
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))

    def layers(calls: dict[str, int]) -> str:
        ran.clear()
        captured = capture(side, calls=calls)
        assert {name for _, name, _ in captured.kept} == calls.keys()
        assert not captured.left
        return "".join(ran)

    assert layers({"layers.1": 1, "layers.3": 1}) == "0123"
    assert layers({"layers.1": 1, "layers.0": 2}) == "0123450"
    assert layers({"layers.1": 2}) == "0123450"

    for ends, expected in ((False, "0123"), (True, "0123450")):
        kept = capture(side, {"layers.3"}).kept
        ran.clear()
        examination = Examination(kept, side.calls, None, same_backend=True)
        assert examination.run(side, {"layers.3"}, to_its_end=ends).found["layers.3"].own == 0
        assert "".join(ran) == expected
        assert bool(examination.gave) == ends


def test_a_module_that_is_no_longer_called_is_not_waited_for_again_and_again() -> None:
    side, _ = sides(model := Reused(), model, hidden())
    captured = capture(side, calls={"layers.9": 1, "layers.1": 1}, most_bytes=1)
    assert [name for _, name, _ in captured.kept] == ["layers.1"]
    captured = capture(side, calls={"layers.9": 1}, most_bytes=1)
    assert not captured.kept
    assert not captured.left


def floats_of(call: Kept) -> list[Tensor]:
    return [leaf for leaf in [*call.output, *tree_leaves((call.args, call.kwargs))] if isinstance(leaf, Tensor)]
