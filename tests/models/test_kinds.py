"""Of equal layers one runs; what differs in anything runs too, and what cannot be told apart runs whole."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import (
    BertConfig,
    BertModel,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5EncoderModel,
)

from sweeper.models.attention import record_kernels
from sweeper.models.kinds import run_one_of_each_kind
from sweeper.models.swapping import Source
from tests.small_models import llama

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
CAUSAL = {**SMALL, "num_key_value_heads": 1, "num_hidden_layers": 4}
IDS_BT = torch.arange(16).view(2, 8)


def ran(model: nn.Module, call: Any) -> set[str]:
    """The modules that ran to their end."""
    names: set[str] = set()
    handles = [
        module.register_forward_hook(lambda *_, name=name: names.add(name)) for name, module in model.named_modules()
    ]
    run_one_of_each_kind(model, call)
    for handle in handles:
        handle.remove()
    return names


def call_of(model: nn.Module) -> Any:
    return functools.partial(model, IDS_BT)


@pytest.mark.parametrize(
    ("model", "layers", "is_whole"),
    [
        (lambda: llama(), {"model.layers.0"}, False),
        (lambda: MixtralForCausalLM(MixtralConfig(**CAUSAL)), {"model.layers.0"}, False),
        (
            lambda: Qwen2ForCausalLM(
                Qwen2Config(**CAUSAL, use_sliding_window=True, max_window_layers=2, sliding_window=4)
            ),
            {f"model.layers.{layer}" for layer in range(3)},  # the third is the first that slides
            False,
        ),
        # the first block alone has the table of positions
        (
            lambda: T5EncoderModel(T5Config(vocab_size=64, d_model=32, d_kv=16, num_layers=4, num_heads=2, d_ff=32)),
            {"encoder.block.0", "encoder.block.1"},
            False,
        ),
        # its pooler is behind the layers, and of a kind that no other module is of
        (
            lambda: BertModel(BertConfig(**SMALL, num_hidden_layers=3)),
            {f"encoder.layer.{layer}" for layer in range(3)},
            False,
        ),
    ],
    ids=["llama", "mixtral", "sliding", "t5", "bert"],
)
@torch.inference_mode()
def test_one_layer_of_each_kind_runs(model: Any, layers: set[str], is_whole: bool) -> None:
    made = model().eval()
    found = ran(made, call_of(made))
    prefix = next(iter(layers)).rpartition(".")[0]
    assert {name for name in found if name.rpartition(".")[0] == prefix} == layers
    assert ("" in found) is is_whole


@torch.inference_mode()
def test_the_call_gives_what_ended_it() -> None:
    hidden_BTF = torch.randn(1, 2, 4, generator=torch.Generator().manual_seed(0))
    equal, unequal = (Layers(Layer(own=True), Layer(own=True), Layer(own=own)) for own in (True, False))
    found = run_one_of_each_kind(equal, functools.partial(equal, hidden_BTF))
    assert torch.equal(found, equal.layers[0](hidden_BTF))
    found = run_one_of_each_kind(unequal, functools.partial(unequal, hidden_BTF))
    assert torch.equal(found, unequal(hidden_BTF))


@torch.inference_mode()
def test_the_kernels_are_those_of_the_whole_model() -> None:
    for attention in ("eager", "sdpa"):
        model = llama(attention=attention)
        with record_kernels("cpu") as of_all:
            call_of(model)()
        with record_kernels("cpu") as of_one:
            run_one_of_each_kind(model, call_of(model))
        assert of_all == of_one != []


class Layer(nn.Module):
    def __init__(self, *, own: bool, scale: float | None = None, width: int = 4) -> None:
        super().__init__()
        self.own, self.scale, self.up = own, scale, nn.Linear(4, width)

    def forward(self, hidden_BTF: torch.Tensor) -> torch.Tensor:
        self.up(hidden_BTF)
        one_head = hidden_BTF[:, None]
        return scaled_dot_product_attention(one_head, one_head, one_head, scale=self.scale)[:, 0]


class Layers(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_BTF: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            hidden_BTF = layer(hidden_BTF)
        return hidden_BTF


@pytest.mark.parametrize(
    ("other", "last"),
    [
        ({"own": True}, 0),
        ({"own": False}, 2),
        ({"own": True, "scale": 0.5}, 2),
        ({"own": True, "width": 5}, 2),
    ],
    ids=["equal", "flag", "attribute", "shape"],
)
def test_a_layer_that_differs_in_anything_runs(other: dict[str, Any], last: int) -> None:
    model = Layers(Layer(own=True), Layer(own=True), Layer(**other))
    found = ran(model, functools.partial(model, torch.ones(1, 2, 4)))
    assert {name for name in found if name.startswith("layers.") and name.count(".") == 1} == {
        f"layers.{layer}" for layer in range(last + 1)
    }
    assert "" not in found


def test_another_dtype_is_another_kind() -> None:
    model = Layers(Layer(own=True), Layer(own=True))
    model.layers[1].register_buffer("table", torch.zeros(2))
    assert "layers.1" in ran(model, functools.partial(model, torch.ones(1, 2, 4)))


def test_what_the_config_says_of_a_layer_is_part_of_its_kind() -> None:
    model = Layers(Layer(own=True), Layer(own=True), Layer(own=True))
    model.config = type("Config", (), {"layer_types": ["full", "sliding", "full"]})()  # type: ignore[assignment]
    found = ran(model, functools.partial(model, torch.ones(1, 2, 4)))
    assert {"layers.0", "layers.1"} <= found
    assert "layers.2" not in found


def test_without_layers_or_with_a_module_that_never_runs_all_of_it_runs() -> None:
    alone = Layer(own=True)
    assert "" in ran(alone, functools.partial(alone, torch.ones(1, 2, 4)))
    model = Layers(Layer(own=True), Layer(own=True))
    model.unused = Layer(own=False)
    assert {"", "layers.1"} <= ran(model, functools.partial(model, torch.ones(1, 2, 4)))


def test_where_weights_come_and_go_with_their_modules_all_of_them_end() -> None:
    model = Layers(Layer(own=True), Layer(own=True))
    weight = model.layers[0].up.weight
    source = Source(lambda device: torch.ones(weight.shape, device=device), "up", torch.zeros(8))
    model.layers[0].up.weight = source.parameter(weight.shape, weight.dtype)
    assert {"", "layers.1"} <= ran(model, functools.partial(model, torch.ones(1, 2, 4)))


def test_beside_a_scripted_module_all_of_it_runs() -> None:
    """It takes no hooks."""
    model = Layers(Layer(own=True), Layer(own=True), torch.jit.script(nn.Linear(4, 4)))
    hidden_BTF = torch.ones(1, 2, 4)
    found = run_one_of_each_kind(model, functools.partial(model, hidden_BTF))
    assert torch.equal(found, model(hidden_BTF))


def test_an_error_passes_and_no_hook_stays() -> None:
    model = Layers(Layer(own=True), Layer(own=True))
    with pytest.raises(RuntimeError, match="shapes"):
        run_one_of_each_kind(model, functools.partial(model, torch.ones(1, 2, 5)))
    run_one_of_each_kind(model, functools.partial(model, torch.ones(1, 2, 4)))
    assert not any(module._forward_hooks for module in model.modules())


@torch.inference_mode()
def test_a_model_that_catches_errors_does_not_catch_the_end() -> None:
    class Cautious(Layers):
        def forward(self, hidden_BTF: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                try:
                    hidden_BTF = layer(hidden_BTF)
                except Exception:
                    continue
            return hidden_BTF

    model = Cautious(Layer(own=True), Layer(own=True))
    assert "layers.1" not in ran(model, functools.partial(model, torch.ones(1, 2, 4)))
