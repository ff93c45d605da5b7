"""A text alone, or in a batch: what shares the forward must not change it.

Shapes: B batch rows, T columns, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.models import load, padded
from tests.zoo.pairs import Pair, PairModels
from tests.zoo.parts import Chunked, Reordered, main_output
from tests.zoo.serving.of_models import of_models

MODELS = (("llama", torch.bfloat16), ("qwen3", torch.float32))


class Wider(nn.Module):
    """Pads right-padded texts further, and cuts what comes out."""

    def __init__(self, model: nn.Module, columns: int) -> None:
        super().__init__()
        self.model = model
        self.columns = columns

    def forward(self, **inputs: Tensor) -> Tensor:
        T = inputs["input_ids"].shape[1]
        wide = {name: functional.pad(value, (0, self.columns - T)) for name, value in inputs.items()}
        return main_output(self.model(**wide))[:, :T]


class Beside(nn.Module):
    """Runs one more row with the batch, and leaves it out of what comes out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        more = {
            name: torch.cat([value[:1].roll(1, 1) if name == "input_ids" else value[:1], value])
            for name, value in inputs.items()
        }
        return main_output(self.model(**more))[1:]


class Scaled(nn.Module):
    """A product of int8-like activations whose one scale is the largest value of the whole batch."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, hidden: Tensor) -> Tensor:
        scale = hidden.abs().max() / 7
        return self.linear((hidden / scale).round() * scale)


class Centred(nn.Module):
    """A norm that first takes the mean over the rows of the batch away."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(hidden - hidden.mean(dim=0, keepdim=True))


class Unmasked(nn.Module):
    """Leaves out the mask where several texts share the batch, so that pads are read as tokens (on the left)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Any:
        ones = torch.ones_like(attention_mask)
        return self.model(attention_mask=ones, **inputs)


class NotPutBack(nn.Module):
    """Sorts the rows of a batch, and gives them back as they ran."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> Tensor:
        order = inputs["attention_mask"].sum(1).argsort()
        return main_output(self.model(**{name: value[order] for name, value in inputs.items()}))


def chunked(rows: int) -> Any:
    """The same texts, some rows a forward."""

    def build(model: str, dtype: torch.dtype) -> PairModels:
        reference = load(model, dtype)
        return PairModels(reference=reference, candidate=Chunked(load(model, dtype), rows), inputs=padded())

    return build


def reordered(model: str, dtype: torch.dtype) -> PairModels:
    """The rows in another order, and put back."""
    return PairModels(reference=load(model, dtype), candidate=Reordered(load(model, dtype), [2, 0, 1]), inputs=padded())


def wider(model: str, dtype: torch.dtype) -> PairModels:
    """Padded to 19 columns where 11 would do."""
    return PairModels(reference=load(model, dtype), candidate=Wider(load(model, dtype), 19), inputs=padded())


def beside(model: str, dtype: torch.dtype) -> PairModels:
    """A fourth text in the batch."""
    return PairModels(reference=load(model, dtype), candidate=Beside(load(model, dtype)), inputs=padded())


def scaled(model: str, dtype: torch.dtype) -> PairModels:
    """Activations scaled by the batch, in company, against the same alone."""
    sides = [load(model, dtype) for _ in range(2)]
    for side in sides:
        side.model.layers[1].mlp.down_proj = Scaled(side.model.layers[1].mlp.down_proj)
    return PairModels(reference=Chunked(sides[0], 1), candidate=sides[1], inputs=padded())


def centred(model: str, dtype: torch.dtype) -> PairModels:
    """A mean over the batch where there was none."""
    candidate = load(model, dtype)
    candidate.model.layers[1].input_layernorm = Centred(candidate.model.layers[1].input_layernorm)
    return PairModels(reference=load(model, dtype), candidate=candidate, inputs=padded())


def unmasked(model: str, dtype: torch.dtype) -> PairModels:
    """Left pads that are read."""
    return PairModels(reference=load(model, dtype), candidate=Unmasked(load(model, dtype)), inputs=padded("left"))


def not_put_back(model: str, dtype: torch.dtype) -> PairModels:
    """Sorted by length, and left so."""
    return PairModels(reference=load(model, dtype), candidate=NotPutBack(load(model, dtype)), inputs=padded())


PAIRS: list[Pair] = of_models(
    [
        ("batch_alone", (), chunked(1)),
        ("batch_of_two", (), chunked(2)),
        ("batch_reordered", (), reordered),
        ("batch_wider", (), wider),
        ("batch_beside", (), beside),
        ("batch_scaled", ("scaled", "model.layers.1.mlp.down_proj", "batch", "rows"), scaled),
        ("batch_centred", ("centred", "input_layernorm"), centred),
        ("batch_unmasked", ("unmasked", "mask"), unmasked),
        ("batch_not_put_back", ("notputback", "order", "rows"), not_put_back),
    ],
    MODELS,
)
