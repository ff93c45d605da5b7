"""The dtype asked for covers the arguments that were cast with the model, wherever they lie; others are named."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sweeper.verdict.comparison import Comparison, compare_models
from tests.small_models import llama, packed, padded_left


def seeded(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def vision() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 5))


def audio() -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, 8, 5, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(48, 5))


def dense() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 4))


def pair(make: Any, dtype: torch.dtype, reference: Tensor, candidate: Tensor) -> Comparison:
    torch.manual_seed(0)
    model = make().eval()
    return compare_models(model, copy.deepcopy(model).to(dtype), {"input": reference}, {"input": candidate})


MAKERS = [(vision, (4, 3, 8, 8)), (audio, (3, 2, 16)), (dense, (3, 7, 16))]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(("make", "shape"), MAKERS)
def test_an_input_cast_with_the_model_is_rounding(make: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = seeded(*shape)
    comparison = pair(make, dtype, given, given.to(dtype))
    assert comparison.verdict.kind == "rounding", comparison
    assert comparison.measured.asked is not None
    explanation = comparison.explain()
    assert explanation.closing is not None
    assert explanation.closing.group == "dtype"
    assert explanation.closing.bitwise


def test_a_reference_in_the_coarser_dtype() -> None:
    torch.manual_seed(0)
    model = vision().eval()
    given = seeded(4, 3, 8, 8)
    comparison = compare_models(copy.deepcopy(model).bfloat16(), model, {"input": given.bfloat16()}, {"input": given})
    assert comparison.verdict.kind == "rounding", comparison


@pytest.mark.parametrize("harm", ["coarser", "scaled", "one value"])
def test_another_input_is_not_what_was_asked_for(harm: str) -> None:
    given = seeded(4, 3, 8, 8)
    other = {"coarser": given.bfloat16().half(), "scaled": (given * 1.01).half(), "one value": given.half()}[harm]
    if harm == "one value":
        other[0, 0, 0, 0] += 0.5
    comparison = pair(vision, torch.float16, given, other)
    assert comparison.verdict.kind == "semantic", comparison
    assert "argument input: other than the reference's" in comparison.explain().cause


class Nested(nn.Module):
    """Takes features in a dictionary, a list and beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 8)

    def forward(self, features: dict[str, Tensor], residuals: list[Tensor], flag: bool = True) -> Tensor:
        return self.linear(features["image"]) + self.linear(residuals[0]) * residuals[1]


def test_arguments_inside_lists_and_dictionaries_are_covered() -> None:
    torch.manual_seed(0)
    model = Nested().eval()

    def given(dtype: torch.dtype, factor: float = 1.0) -> dict[str, Any]:
        image, residual = (seeded(3, 7, 16) * scale for scale in (1.0, 0.5))
        return {
            "features": {"image": image.to(dtype)},
            "residuals": [residual.to(dtype) * factor, seeded(3, 7, 8).to(dtype)],
            "flag": True,
            "hidden": seeded(3, 7, 16).to(dtype),
        }

    class Taking(Nested):
        def forward(self, hidden: Tensor, **rest: Any) -> Tensor:  # type: ignore[override]
            return super().forward(**rest) + self.linear(hidden)

    model.__class__ = Taking
    candidate = copy.deepcopy(model).bfloat16()
    comparison = compare_models(model, candidate, given(torch.float32), given(torch.bfloat16))
    assert comparison.verdict.kind == "rounding", comparison
    other = compare_models(model, candidate, given(torch.float32), given(torch.bfloat16, factor=2.0))
    assert other.verdict.kind == "semantic"
    assert "argument residuals" in other.explain().cause


def test_embeddings_as_input_are_covered_in_another_layout_too() -> None:
    model = llama()
    lookup = model.model.embed_tokens
    left, row = padded_left(), packed()
    with torch.no_grad():
        reference = {"inputs_embeds": lookup(left["input_ids"]), "attention_mask": left["attention_mask"]}
        candidate = {"inputs_embeds": lookup(row["input_ids"]).bfloat16(), "position_ids": row["position_ids"]}
    comparison = compare_models(model, llama(torch.bfloat16), reference, {**candidate, "use_cache": False})
    assert comparison.verdict.kind == "rounding", comparison


class Parameterless(nn.Module):
    def forward(self, hidden: Tensor) -> Tensor:
        return hidden.softmax(-1) @ hidden.mT.softmax(-1)


def test_a_model_without_parameters_has_the_dtype_of_its_input() -> None:
    given = seeded(2, 9, 16)
    comparison = compare_models(Parameterless(), Parameterless(), {"hidden": given}, {"hidden": given.bfloat16()})
    assert comparison.verdict.kind == "rounding", comparison
    assert comparison.measured.asked == "float32 -> bfloat16, with hidden"
    assert "argument hidden" in comparison.explain().cause
