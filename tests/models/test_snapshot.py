"""A run leaves nothing behind: the very objects in the very slots, their values, arguments, random state."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from sweeper.comparator.side import run, sides
from sweeper.errors import ConfigError
from sweeper.models.snapshot import fresh, left_as_found, reachable
from sweeper.verdict.comparison import compare_models
from sweeper.verdict.float64_replay import replayed
from tests.small_models import llama, padded_left


def _everything(model: nn.Module) -> list[Any]:
    """The identity of all in all slots, and the values of all tensors."""
    found: list[Any] = []
    for name, module in model.named_modules():
        found.append((name, [(key, id(value)) for key, value in vars(module).items()]))
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found.append((name, key, [(inner, id(held)) for inner, held in value.items()]))
            if isinstance(value, (list, deque)):
                found.append((name, key, list(map(id, value))))
            for tensor in value.values() if isinstance(value, dict) else [value]:
                if isinstance(tensor, Tensor):
                    found.append((tensor.dtype, tensor.data_ptr(), tensor.requires_grad, tensor.tolist()))
    return found


class Leaving(nn.Module):
    """Writes wherever a model can: what `leave` does comes before the result."""

    def __init__(self, leave: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.inner, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)
        self.embed = nn.Embedding(9, 4, max_norm=0.5)
        self.register_buffer("h", torch.zeros(4))
        self.register_buffer("steps", torch.tensor(0))
        self.plain, self.count = torch.zeros(4), 0
        self.history: list[Any] = [torch.ones(4)]
        self.recent: deque[Any] = deque([1, 2, 3], maxlen=3)
        self.names = {"a"}
        self.by_layer: dict[str, Any] = {"x": torch.ones(4)}
        self.state = SimpleNamespace(step=0, cache=torch.zeros(4))
        self.nothing_yet: tuple[Any, ...] = ([], {}, set(), deque(), SimpleNamespace(seen=[]))
        self.generator = torch.Generator().manual_seed(3)
        self.draws = np.random.default_rng(3)
        self.leave = leave

    def forward(self, x: Tensor) -> Tensor:
        self.leave(self, x)
        return self.inner(x)


def _assigns_a_buffer(model: Any, x: Tensor) -> None:
    model.h = x.mean((0, 1))


def _writes_buffers(model: Any, x: Tensor) -> None:
    model.h.copy_(x.mean((0, 1)))
    model.steps += 1


def _assigns_attributes(model: Any, x: Tensor) -> None:
    model.plain, model.count, model.new = x.mean((0, 1)), model.count + 1, x


def _writes_attributes(model: Any, x: Tensor) -> None:
    model.plain += 1
    model.by_layer["x"].mul_(3)
    model.history[0].zero_()


def _fills_containers(model: Any, x: Tensor) -> None:
    model.history.append(x)
    model.recent.append(4)
    model.by_layer["y"] = x
    model.names.add("b")


def _fills_what_was_empty(model: Any, x: Tensor) -> None:
    items, mapping, names, recent, state = model.nothing_yet
    items.append(x), mapping.update(x=x), names.add("x"), recent.append(x), state.seen.append(x)
    model.inner.register_forward_pre_hook(lambda *_: None, with_kwargs=True)
    model.inner.register_buffer("added", x, persistent=False)


def _changes_the_order(model: Any, _: Tensor) -> None:
    count = model.count
    del model.count
    model.count = count
    model._modules["inner"] = model._modules.pop("inner")


def _empties_containers(model: Any, _: Tensor) -> None:
    model.history.clear(), model.recent.clear(), model.by_layer.clear(), model.names.clear()
    del model.state.cache


def _puts_an_equal_one_in_place(model: Any, _: Tensor) -> None:
    model.by_layer["x"], model.history[0], model.training = model.by_layer["x"].clone(), model.history[0].clone(), 0
    model.state.step = False  # equals 0


def _carries_a_state_object(model: Any, x: Tensor) -> None:
    model.state.step += 1
    model.state.cache = x
    model.state.more = 1


def _changes_modes(model: Any, _: Tensor) -> None:
    model.train()
    model.requires_grad_(False)
    model.inner.weight.grad = torch.ones_like(model.inner.weight)


def _changes_modules(model: Any, _: Tensor) -> None:
    model.norm = nn.Identity()
    model.added = nn.Linear(4, 4)
    model.inner.register_forward_hook(lambda *_: None)
    model.inner = copy.deepcopy(model.inner).double().float()


def _changes_a_slot(model: Any, _: Tensor) -> None:
    model.inner.weight = nn.Parameter(model.inner.weight * 2)
    model.inner.bias.data = model.inner.bias.data.double().float()


def _runs_in_training_mode(model: Any, x: Tensor) -> None:
    model.norm.train()(x.flatten(0, 1))


def _looks_up_with_a_largest_norm(model: Any, _: Tensor) -> None:
    model.embed(torch.arange(9))


def _draws(model: Any, _: Tensor) -> None:
    torch.rand(3, generator=model.generator)
    model.draws.random(3)


LEAVING = [
    _assigns_a_buffer,
    _writes_buffers,
    _assigns_attributes,
    _writes_attributes,
    _fills_containers,
    _fills_what_was_empty,
    _changes_the_order,
    _empties_containers,
    _puts_an_equal_one_in_place,
    _carries_a_state_object,
    _changes_modes,
    _changes_modules,
    _changes_a_slot,
    _runs_in_training_mode,
    _looks_up_with_a_largest_norm,
    _draws,
]


@pytest.mark.parametrize("fails", [False, True], ids=["ends", "fails"])
@pytest.mark.parametrize("leave", LEAVING)
def test_a_run_leaves_the_model_as_it_was(leave: Callable[[Any, Tensor], object], fails: bool) -> None:
    torch.manual_seed(0)
    model = Leaving(leave).eval()
    before = _everything(model)
    states = (repr(model.state.step), id(model.state.cache), list(vars(model.state)))
    nothing_yet = repr(model.nothing_yet)
    drawn = model.generator.get_state(), str(model.draws.bit_generator.state)

    def failing(*_: Any) -> None:
        raise KeyError("a hook")

    handle = model.inner.register_forward_hook(failing) if fails else None
    side, _ = sides(model, model, {"x": torch.randn(2, 3, 4)})
    if fails:
        with pytest.raises(KeyError, match="a hook"):
            run(side)
        assert handle is not None
        handle.remove()
    else:
        first, second = run(side)["output"], run(side)["output"]
        assert torch.equal(first, second)
    assert _everything(model) == before
    assert (repr(model.state.step), id(model.state.cache), list(vars(model.state))) == states
    assert repr(model.nothing_yet) == nothing_yet
    assert torch.equal(model.generator.get_state(), drawn[0])
    assert str(model.draws.bit_generator.state) == drawn[1]
    assert model.inner.weight.grad is None


@pytest.mark.parametrize("leave", [*LEAVING[:5], _carries_a_state_object])
def test_a_whole_comparison_and_its_explanation_leave_both_models_as_they_were(
    leave: Callable[[Any, Tensor], object],
) -> None:
    """The replay makes what the forward assigns float64: it must not stay."""
    torch.manual_seed(0)
    reference = Leaving(leave).eval()
    candidate = Leaving(leave).eval()
    candidate.load_state_dict(reference.state_dict())
    candidate.inner.weight.data[0, 0] += 0.01
    before = _everything(reference), _everything(candidate)
    comparison = compare_models(reference, candidate, {"x": torch.randn(2, 3, 4)})
    assert comparison.verdict.kind == "semantic"
    assert "inner.weight" in comparison.explain().cause
    assert (_everything(reference), _everything(candidate)) == before
    candidate(torch.randn(2, 3, 4))  # the user's own call still runs


class Stream(nn.Module):
    """The state of one call is the next one's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.register_buffer("h", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.tanh(self.inner(x) + self.h)
        self.h = out.mean((0, 1))
        return out


def test_the_calls_of_a_run_see_the_state_of_those_before_them() -> None:
    torch.manual_seed(0)
    model, x = Stream(), torch.randn(2, 3, 4)
    side, _ = sides(model, model, [{"x": x}, {"x": x}])
    first, second = run(side)["output"].chunk(2)
    assert not torch.equal(first, second)
    kept = copy.deepcopy(model)
    with torch.no_grad():
        kept(x)
        assert torch.equal(kept(x).flatten(0, 1), second)


def test_a_parameter_that_the_model_writes_to_is_named() -> None:
    def writes(model: Any, _: Tensor) -> None:
        model.inner.weight.mul_(0.5)

    side, _ = sides(*[Leaving(writes)] * 2, {"x": torch.randn(2, 3, 4)})
    with pytest.raises(ConfigError, match=r"Leaving writes into its own parameter inner.weight"):
        run(side)


class Preprocessing(nn.Module):
    """Writes to what it is given (transformers#47741)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, **given: Any) -> Tensor:
        x = next(iter(given.values()))
        if isinstance(x, dict):
            x = x.pop("x")
        if isinstance(x, list):
            x.append(x[0])
            x = x[0]
        if isinstance(x, Given):
            x.used = True
            x = x.x
        x.sub_(0.45).div_(0.225)
        return self.inner(x)


@dataclass
class Given:
    x: Tensor
    used: bool = False


def _given(x: Tensor) -> list[dict[str, Any]]:
    mask = torch.ones(2, 3, dtype=torch.int64)
    return [
        {"x": x},
        {"features": {"x": x}, "attention_mask": mask},
        {"images": [x], "attention_mask": mask},
        {"batch": Given(x), "attention_mask": mask},
    ]


@pytest.mark.parametrize("case", range(4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_users_arguments_are_not_written_to_and_every_run_reads_the_same(case: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    reference = Preprocessing().to(dtype)
    candidate = copy.deepcopy(reference)
    candidate.inner.weight.data[0, 0] += 0.5
    x = torch.randn(2, 3, 4, dtype=dtype)
    kept, inputs = x.clone(), _given(x)[case]
    shown = repr(inputs)
    comparison = compare_models(reference, candidate, inputs)
    assert comparison.verdict.kind == "semantic"
    assert "inner.weight" in comparison.explain().cause
    assert torch.equal(x, kept)
    assert repr(inputs) == shown


def test_a_cache_that_is_passed_does_not_grow() -> None:
    model, inputs = llama(), padded_left()
    cache = DynamicCache()
    model(**inputs, past_key_values=cache)  # with a history: no deep copy takes it
    length = cache.get_seq_length()
    step = {"input_ids": torch.tensor([[5], [7]]), "past_key_values": cache}
    comparison = compare_models(model, copy.deepcopy(model), step)
    assert comparison.verdict.kind == "identical"
    assert cache.get_seq_length() == length
    assert cache.layers[0].keys.grad_fn is not None


def test_what_two_arguments_share_their_copies_share() -> None:
    x, cache = torch.ones(2), SimpleNamespace(seen=[])
    first, second = fresh([{"x": x, "y": x, "cache": cache}, {"x": x, "cache": cache}])
    assert first["x"] is first["y"] is second["x"] is not x
    assert first["cache"] is second["cache"] is not cache
    model = nn.Linear(2, 2)
    lock = open(__file__)  # noqa: SIM115
    (call,) = fresh([{"model": model, "file": lock, "nested": {"model": model}}])
    lock.close()
    assert call["model"] is call["nested"]["model"] is model
    assert call["file"] is lock


class Drawing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(x.shape)
        return x + nn.functional.dropout(noise, 0.5, training=True)


def test_every_run_draws_the_same_and_the_users_random_state_goes_on() -> None:
    side, _ = sides(*[Drawing()] * 2, {"x": torch.zeros(2, 3, 4)})

    def draws() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(()))]

    def seed() -> None:
        random.seed(1), np.random.seed(1), torch.manual_seed(1)

    seed()
    want = draws()
    seed()
    first = run(side)["output"]
    assert draws() == want
    assert torch.equal(run(side)["output"], first)
    assert not torch.equal(run(replace(side, seed=1))["output"], first)


def test_the_random_state_goes_on_behind_a_run_that_fails() -> None:
    model = nn.Linear(2, 2)
    before = torch.get_rng_state()

    def fail() -> None:
        with left_as_found(model):
            torch.rand(3)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


DRAWS: list[Callable[[], object]] = [
    lambda: None,
    np.random.rand,
    np.random.randn,
    random.random,
    torch.rand(()).uniform_,
]


@pytest.mark.parametrize(
    "draw", [lambda: None, np.random.rand, np.random.randn, random.random, torch.rand(()).uniform_]
)
@pytest.mark.parametrize("seeds", [(0, 0), (0, 1), (1, 0)])
def test_a_run_inside_a_run_draws_nothing_from_it(draw: Callable[[], object], seeds: tuple[int, int]) -> None:
    """A draw of a normal number leaves another one behind, in numpy and in Python."""
    outer, inner = seeds

    def drawn() -> list[float]:
        return [random.gauss(0, 1), *np.random.randn(1), float(np.random.rand()), float(torch.rand(()))]

    def run_of(seed: int, within: Callable[[], object]) -> list[float]:
        with left_as_found(nn.Identity(), seed=seed):
            draw()
            within()
            return drawn()

    def two_more() -> None:
        for times in range(2):
            with left_as_found(nn.Identity(), seed=inner):
                for _ in range(times):
                    drawn()

    drawn()  # the user's own, of which a normal number is left
    goes_on = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert run_of(outer, two_more) == run_of(outer, lambda: None)
    assert run_of(inner, two_more) == run_of(inner, lambda: None)
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == goes_on


def test_what_hangs_on_a_model_is_the_same_without_what_is_empty() -> None:
    model, empty = llama(), list[Any]()
    everything = [(id(value), reach) for value, reach in reachable(model)]
    rest = [(id(value), reach) for value, reach in reachable(model, empty)]
    none = set(map(id, empty))
    assert len(none) > 100
    assert rest == [found for found in everything if found[0] not in none]
    assert none == {id(value) for value, reach in reachable(model) if not isinstance(value, Tensor) and not value}


def test_tensors_that_take_part_in_gradients_keep_theirs() -> None:
    model = nn.Linear(4, 4)
    x = torch.randn(2, 3, 4, requires_grad=True)
    loss = model(x).sum()
    loss.backward()
    grads = model.weight.grad, x.grad
    compare_models(model, copy.deepcopy(model).bfloat16().float(), {"input": x})
    assert (id(model.weight.grad), id(x.grad)) == tuple(map(id, grads))
    assert x.requires_grad


class Accumulating(nn.Module):
    """Gives its own state, which the next call writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(2, 3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.total.add_(x)


def test_an_output_that_is_a_buffer_keeps_its_values_when_the_buffer_is_put_back() -> None:
    x = torch.ones(2, 3, 4)
    model = Accumulating()
    side, _ = sides(model, model, {"x": x})
    assert torch.equal(run(side)["output"], x.flatten(0, 1))
    assert not model.total.any()


class Dropping(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.first, self.last = scale, nn.Dropout(), nn.Dropout()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x * self.scale))


def test_a_replay_converts_no_parameter_to_see_where_it_lies() -> None:
    """That a model's outputs are none of its own tensors was asked under the mode that lifts what it is given."""
    side, _ = sides(llama(), llama(), padded_left())
    with replayed(side) as (lifted, _):
        outputs = run(lifted)
        memories: list[Tensor] = []

        def double(tensor: Tensor, *arguments: Any, **settings: Any) -> Tensor:
            memories.append(tensor)
            return to(tensor, *arguments, **settings)

        to, Tensor.to = Tensor.to, double  # type: ignore[method-assign]
        try:
            again = run(lifted)
        finally:
            Tensor.to = to  # type: ignore[method-assign]
    parameters = {parameter.data_ptr() for parameter in side.model.parameters()}
    assert not parameters & {tensor.data_ptr() for tensor in memories}
    assert torch.equal(outputs["logits"], again["logits"])


def test_a_module_that_is_run_on_the_references_input_draws_nothing_from_the_run() -> None:
    """Both masks are then those of the plain run: nothing differs but by the scale."""
    comparison = compare_models(Dropping(1.0).train(), Dropping(1.5).train(), {"x": torch.ones(2, 3, 4)})
    assert [module.output.rel_l2 for module in comparison.native.modules] == [0.5, 0.5]
