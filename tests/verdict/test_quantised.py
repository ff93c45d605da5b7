"""Quantised candidates: rounding where the type declares it and the rest is the same function, else what they are."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, OPTConfig, OPTModel

from sweeper.models.quantised import dequantised
from sweeper.models.state import compare_state, state_of
from sweeper.verdict.comparison import compare_models
from tests.small_models import llama

pytestmark = pytest.mark.filterwarnings("ignore")
Quantise = Callable[[nn.Module], Any]


def dynamic(dtype: torch.dtype = torch.qint8) -> Quantise:
    def quantise(model: nn.Module) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kinds = {nn.Linear, nn.LSTM, nn.GRU}
            return torch.ao.quantization.quantize_dynamic(copy.deepcopy(model), kinds, dtype=dtype)

    return quantise


def torchao(name: str, **options: Any) -> Quantise:
    def quantise(model: nn.Module) -> Any:
        quantization = pytest.importorskip("torchao.quantization")
        candidate = copy.deepcopy(model)
        quantization.quantize_(candidate, getattr(quantization, name)(**options))
        return candidate

    return quantise


SCHEMES: list[tuple[Quantise, str]] = [
    (dynamic(), "int8"),
    (dynamic(torch.float16), "float16"),
    (torchao("Int8WeightOnlyConfig"), "int8"),
    (torchao("Int8DynamicActivationInt8WeightConfig"), "int8"),
    (torchao("Float8WeightOnlyConfig"), "float8_e4m3fn"),
    (torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4), "int4"),
]
IDS = ["dynamic int8", "dynamic float16", "int8", "int8 activations too", "float8", "int4"]


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU]) -> None:
        super().__init__()
        self.rnn, self.out = kind(32, 32, 2, batch_first=True), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0])


def mlp() -> tuple[nn.Module, dict[str, Any]]:
    return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 8)), {"input": torch.randn(2, 6, 64)}


def lstm() -> tuple[nn.Module, dict[str, Any]]:
    return Recurrent(nn.LSTM), {"x": torch.randn(2, 6, 32)}


def gru() -> tuple[nn.Module, dict[str, Any]]:
    return Recurrent(nn.GRU), {"x": torch.randn(2, 6, 32)}


def opt() -> tuple[nn.Module, dict[str, Any]]:
    sizes = {"hidden_size": 32, "ffn_dim": 64, "word_embed_proj_dim": 32, "num_attention_heads": 4}
    config = OPTConfig(vocab_size=64, num_hidden_layers=2, max_position_embeddings=32, init_std=0.1, **sizes)
    return OPTModel(config), {"input_ids": torch.randint(3, 64, (2, 9)), "use_cache": False}


def small_llama() -> tuple[nn.Module, dict[str, Any]]:
    return llama(), {"input_ids": torch.randint(3, 64, (2, 9)), "use_cache": False}


MAKERS = [mlp, lstm, gru, opt, small_llama]


def _made(make: Callable[[], tuple[nn.Module, dict[str, Any]]]) -> tuple[nn.Module, dict[str, Any]]:
    torch.manual_seed(0)
    model, inputs = make()
    return model.eval(), inputs


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(("quantise", "scheme"), SCHEMES, ids=IDS)
def test_declared_quantisation_is_rounding_and_is_named(
    make: Callable[[], tuple[nn.Module, dict[str, Any]]], quantise: Quantise, scheme: str
) -> None:
    reference, inputs = _made(make)
    candidate = quantise(reference)
    comparison = compare_models(reference, candidate, inputs)
    assert comparison.verdict.kind == "rounding", comparison
    assert not comparison.provenance.other
    assert not comparison.provenance.missing
    (asked,) = [each for each in comparison.verdict.evidence if each.name == f"asked: {scheme}"]
    assert asked.value == comparison.measured.native > 0
    assert f"the weights were quantised to {scheme}" in comparison.explain().cause


@pytest.mark.parametrize("make", [mlp, lstm, opt])
@pytest.mark.parametrize(("quantise", "scheme"), SCHEMES, ids=IDS)
def test_a_weight_that_was_another_before_it_was_quantised_is_semantic(
    make: Callable[[], tuple[nn.Module, dict[str, Any]]], quantise: Quantise, scheme: str
) -> None:
    reference, inputs = _made(make)
    other = copy.deepcopy(reference)
    weights = [module.weight for module in other.modules() if isinstance(module, nn.Linear)]
    weights[-1].data[0, 0] += 1.0
    comparison = compare_models(reference, quantise(other), inputs)
    assert comparison.verdict.kind == "semantic", comparison
    assert len(comparison.provenance.other) == 1
    (name,) = comparison.provenance.other
    assert name in comparison.explain().cause


@pytest.mark.parametrize(("quantise", "scheme"), SCHEMES, ids=IDS)
def test_what_quantisation_does_not_close_is_semantic(quantise: Quantise, scheme: str) -> None:
    reference, inputs = _made(mlp)
    other = copy.deepcopy(reference)
    other[1] = nn.GELU("tanh")
    comparison = compare_models(reference, quantise(other), inputs)
    assert comparison.verdict.kind == "semantic"
    assert "GELU.approximate" in comparison.explain().cause


@pytest.mark.parametrize(("quantise", "scheme"), SCHEMES, ids=IDS)
def test_the_reference_may_be_the_quantised_one(quantise: Quantise, scheme: str) -> None:
    model, inputs = _made(opt)
    comparison = compare_models(quantise(model), model, inputs)
    assert comparison.verdict.kind == "rounding"
    cause = comparison.explain().cause
    assert f"quantised to {scheme}" in cause
    assert "in the reference" in cause
    assert "closed bitwise" in cause


@pytest.mark.parametrize(("quantise", "scheme"), SCHEMES[2:], ids=IDS[2:])
def test_bfloat16_weights(quantise: Quantise, scheme: str) -> None:
    model, inputs = _made(mlp)
    inputs = {"input": inputs["input"].bfloat16()}
    comparison = compare_models(model.bfloat16(), quantise(model.bfloat16()), inputs)
    assert comparison.verdict.kind == "rounding", comparison


def test_a_quantised_kernel_that_is_off_is_not_waved_through(monkeypatch: pytest.MonkeyPatch) -> None:
    """The replay does not run the kernel: how far it moves the outputs tells."""
    reference, inputs = _made(mlp)
    candidate = dynamic()(reference)
    own = type(candidate[2]).forward
    monkeypatch.setattr(type(candidate[2]), "forward", lambda self, x: own(self, x) * 1.5)
    assert compare_models(reference, candidate, inputs).verdict.kind in ("semantic", "inconclusive")


@pytest.mark.parametrize(("quantise", "scheme"), SCHEMES, ids=IDS)
def test_quantised_state_is_state(quantise: Quantise, scheme: str) -> None:
    model, _ = _made(lstm)
    candidate = quantise(model)
    slots = {name: {**module._parameters, **module._modules} for name, module in candidate.named_modules()}
    figures = compare_state(state_of(model), state_of(candidate))
    assert figures.parameters == len(list(model.parameters()))
    assert scheme in {difference.candidate_dtype for difference in figures.differing}
    with dequantised(candidate):
        assert dict(candidate.named_parameters()).keys() == dict(model.named_parameters()).keys()
    after = {name: {**module._parameters, **module._modules} for name, module in candidate.named_modules()}
    assert after.keys() == slots.keys()
    assert all(held is slots[name][key] for name, module in after.items() for key, held in module.items())


def test_conv1d_weights_of_gpt2_stay_as_they_are() -> None:
    """torch quantises no Conv1D of transformers: nothing was asked for, nothing moves."""
    torch.manual_seed(0)
    model = GPT2Model(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=4, n_positions=32)).eval()
    comparison = compare_models(model, dynamic()(model), {"input_ids": torch.randint(3, 64, (2, 9))})
    assert comparison.verdict.kind == "identical"
