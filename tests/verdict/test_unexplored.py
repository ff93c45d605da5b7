"""`explain()` ends in a sentence: it says what it could not look into, and where values overflow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import T5Config, T5EncoderModel

from sweeper.verdict.comparison import compare_models
from tests.small_models import attention, hidden, llama, padded_left


def embedding(eps: float) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 16), nn.LayerNorm(16, eps=eps), nn.Linear(16, 8)).eval()


IDS = torch.randint(0, 50, (2, 12), generator=torch.Generator().manual_seed(0))


def traced(eps: float) -> nn.Module:
    model: nn.Module = torch.jit.trace(embedding(eps), (IDS,))
    return model


def scripted(eps: float) -> nn.Module:
    model: nn.Module = torch.jit.script(embedding(eps))
    return model


def graph(eps: float) -> nn.Module:
    return torch.fx.symbolic_trace(embedding(eps))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [traced, scripted, graph])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_model_that_is_a_graph_is_named_as_what_was_not_looked_into(make: Any, side: str) -> None:
    models = [make(1e-2), embedding(1e-5)]
    comparison = compare_models(*(models if side == "reference" else models[::-1]), {"input": IDS})
    assert comparison.verdict.kind == "semantic"
    explanation = comparison.explain()
    assert any(f"the model of the {side}" in what for what in explanation.unexplored)
    if explanation.closing is None:
        assert "its code is a graph" in explanation.cause


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_one_traced_module_is_named_and_the_rest_is_looked_into() -> None:
    reference, candidate = embedding(1e-5), embedding(1e-5)
    candidate[2] = torch.jit.trace(candidate[2], (torch.zeros(2, 12, 16),))
    candidate[1].eps = 1e-2
    explanation = compare_models(reference, candidate, {"input": IDS}).explain()
    assert explanation.cause.startswith("LayerNorm.eps: 1e-05 -> 0.01 of 1")
    assert any(what.startswith("2 of the candidate (") for what in explanation.unexplored)


class Raising:
    """A config that cannot be compared."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        raise LookupError("compare me not")

    __hash__ = None  # type: ignore[assignment]


def test_what_raises_as_it_is_looked_into_is_said_with_the_exception() -> None:
    reference, candidate = attention(), attention()
    candidate.scale = 0.3

    class Config:
        def __init__(self, value: int) -> None:
            self.inner = Raising(value)

    reference.config, candidate.config = Config(1), Config(2)
    explanation = compare_models(reference, candidate, hidden()).explain()
    assert "code (LookupError: compare me not)" in explanation.unexplored
    assert "Could not look into: code (LookupError: compare me not)" in explanation.cause


def _large(model: Any) -> Any:
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(3e6)
    return model


def test_the_module_in_which_values_leave_float16_is_named() -> None:
    comparison = compare_models(_large(llama()), _large(llama()).half(), padded_left())
    assert comparison.verdict.kind in ("semantic", "policy")
    assert "first output with other NaN or Inf" in comparison.explain().cause
    assert "model.layers.1.mlp.down_proj" in comparison.explain().cause


def test_an_overflow_inside_a_plain_model_is_closed_by_its_dtype() -> None:
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        reference[0].weight.copy_(reference[0].weight.half() * 400)
        reference[1].weight.copy_((reference[1].weight * 400).half())
        for linear in reference:
            linear.bias.copy_(linear.bias.half())
    given = hidden()["hidden"] * 40
    candidate = copy.deepcopy(reference).half()
    comparison = compare_models(reference, candidate, {"input": given}, {"input": given.half()})
    assert comparison.verdict.kind == "semantic", comparison
    assert "leave the range of the candidate's dtype" in comparison.verdict.reason
    cause = comparison.explain().cause
    assert cause.startswith("dtype: float32 -> float16")
    assert "is that of 1 (" in cause


def test_an_overflow_in_the_reference_is_the_reference_s() -> None:
    torch.manual_seed(0)
    config = {"vocab_size": 50, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    model = T5EncoderModel(T5Config(**config)).eval()
    with torch.no_grad():
        model.encoder.block[0].layer[1].DenseReluDense.wi.weight.mul_(3e5)
    reference = copy.deepcopy(model).half()
    comparison = compare_models(reference, model, {"input_ids": IDS})
    cause = comparison.explain().cause
    assert "most in the reference" in cause
    assert "DenseReluDense.wi" in cause


def test_code_that_only_rounds_otherwise_is_named_in_a_real_model() -> None:
    reference, candidate = llama(torch.bfloat16), llama(torch.bfloat16)
    projection = candidate.model.layers[1].self_attn.o_proj
    weight = projection.weight
    projection.forward = lambda x: x[..., :32] @ weight.T[:32] + x[..., 32:] @ weight.T[32:]
    comparison = compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind == "rounding", comparison
    assert "Linear.forward: the class's own" in comparison.explain().cause


def test_values_that_a_function_closes_over_are_code() -> None:
    def scaled(factor: float) -> Any:
        return lambda _module, _inputs, output: output * factor

    reference, candidate = attention(), attention()
    reference.o.register_forward_hook(scaled(1.0))
    candidate.o.register_forward_hook(scaled(1.5))
    assert compare_models(reference, candidate, hidden()).explain().cause.startswith("forward hooks on Linear of o")


def test_a_tensor_or_a_helper_object_that_is_a_plain_attribute_is_code() -> None:
    class Helper:
        def __init__(self, scale: float) -> None:
            self.scale = scale

    class Scaled(nn.Module):
        def __init__(self, shift: float, scale: float) -> None:
            super().__init__()
            self.linear = nn.Linear(16, 4)
            self.shift, self.helper = torch.full((4,), shift), Helper(scale)

        def forward(self, hidden: Tensor) -> Tensor:
            return self.linear(hidden) * self.helper.scale + self.shift

    def made(*values: float) -> nn.Module:
        torch.manual_seed(0)
        return Scaled(*values).eval()

    cause = compare_models(made(0.0, 1.0), made(0.5, 1.0), hidden()).explain().cause
    assert cause.startswith("Scaled.shift: a tensor [4] -> a tensor [4] of the model")
    cause = compare_models(made(0.0, 1.0), made(0.0, 2.0), hidden()).explain().cause
    assert cause.startswith("Scaled.helper.scale: 1.0 -> 2.0 of the model")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("make", [traced, scripted, graph])
def test_a_graph_of_the_same_function_is_not_raised(make: Any) -> None:
    assert compare_models(embedding(1e-5), make(1e-5), {"input": IDS}).verdict.kind in ("identical", "rounding")
