"""Edits that several pairs share, in place, and the inputs and models that need one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.zoo.language.models import load
from tests.zoo.models import padded
from tests.zoo.pairs import Inputs


def interleave_heads(weight: Tensor) -> None:
    """Does what `interleave_rotary_rows` does, for heads of 16 rows."""
    heads = weight.view(-1, 2, 8, weight.shape[1])
    weight.copy_(heads.transpose(1, 2).reshape(weight.shape).clone())


def regroup(tensor: Tensor, heads: int, *, dim: int = 0) -> None:
    """Order a fused projection in place by [3, head] where it is ordered by [head, 3]."""
    order = torch.arange(tensor.shape[dim]).view(heads, 3, -1).transpose(0, 1).reshape(-1)
    tensor.copy_(tensor.index_select(dim, order))


def ungroup(tensor: Tensor, heads: int, *, dim: int = 0) -> None:
    """Order a fused projection in place by [head, 3] where it is ordered by [3, head]."""
    order = torch.arange(tensor.shape[dim]).view(3, heads, -1).transpose(0, 1).reshape(-1)
    tensor.copy_(tensor.index_select(dim, order))


def lively_mamba() -> Any:
    """A float32 Mamba whose states matter: longer time steps, stronger inputs and outputs of the state."""
    model = load("mamba")
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.mixer.dt_proj.bias += 3.0
            layer.mixer.x_proj.weight *= 8.0
    return model


def reorder(mixture: Any) -> None:
    """Put the four experts of a mixture in another order, and the router's rows with them."""
    for weight in (mixture.gate.weight, mixture.experts.gate_up_proj, mixture.experts.down_proj):
        weight.copy_(weight[[2, 0, 3, 1]])


def swap_halves(weight: Tensor) -> None:
    """Swap the first and the second half of the rows in place."""
    weight.copy_(weight.roll(weight.shape[0] // 2, dims=0))


def typed() -> Inputs:
    """Right-padded texts whose second halves are of type 1."""
    inputs = padded("right", positions=False)
    types = torch.zeros_like(inputs["input_ids"])
    types[:, 3:] = 1
    return inputs | {"token_type_ids": types * inputs["attention_mask"]}


def scale_encoder_states(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Return the output with the encoder's states a tenth larger."""
    output["encoder_last_hidden_state"] = output.encoder_last_hidden_state * 1.1
    return output
