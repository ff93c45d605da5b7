"""Pairs of mixtures of experts: Mixtral and Qwen 2 MoE."""

from __future__ import annotations

from typing import Any

import torch

from tests.zoo.language import parts
from tests.zoo.language.edits import reorder
from tests.zoo.language.models import load
from tests.zoo.models import one_length, padded, set_class
from tests.zoo.pairs import SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("dtype/qwen2moe_float16")
def dtype_qwen2moe() -> PairModels:
    """Expected to be among the hardest: float16 may choose another expert where two are close."""
    reference, candidate = (load("qwen2moe", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=one_length())


@harmless("experts_reordered/qwen2moe_bfloat16")
def experts_reordered_qwen2moe() -> PairModels:
    """The experts and the router's rows of both layers in another order."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            reorder(layer.mlp)

    return edited(load("qwen2moe", torch.bfloat16), padded("left"), edit)


@harmless("experts_backend/qwen2moe_float16")
def experts_backend_qwen2moe() -> PairModels:
    """A loop over experts against batched products."""
    reference, candidate = (
        load("qwen2moe", torch.float16, experts_implementation=backend) for backend in ("eager", "batched_mm")
    )
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("causal_off/mixtral_float16", allowed=SEMANTIC, cause=("mask", "causal", "self_attn", "attention"))
def causal_off_mixtral() -> PairModels:
    """One layer that sees the future."""
    return edited(
        load("mixtral", torch.float16),
        one_length(),
        lambda model: set_class(model.model.layers[0].self_attn, parts.UnmaskedMixtralAttention),
    )


@harmful("router/mixtral_bfloat16", allowed=SEMANTIC, cause=("top_k", "gate", "router", "expert", "mlp"))
def router_mixtral() -> PairModels:
    """One expert a token where two were trained."""
    reference, candidate = (load("mixtral", torch.bfloat16, num_experts_per_tok=chosen) for chosen in (2, 1))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("experts_swapped/mixtral_float16", allowed=STATE, cause=("down_proj",))
def experts_swapped_mixtral() -> PairModels:
    """The down projections of two experts swapped: names sorted as text, 1 10 2 .."""

    def edit(model: Any) -> None:
        weight = model.model.layers[1].mlp.experts.down_proj
        weight.copy_(weight[[1, 0, 2, 3]])

    return edited(load("mixtral", torch.float16), padded("left"), edit)


@harmful("shared_expert/qwen2moe_float32", allowed=STATE, cause=("shared_expert",))
def shared_expert_qwen2moe() -> PairModels:
    """The shared expert's gate was never loaded: it is zero, which lets half of the expert through."""
    return edited(
        load("qwen2moe"), padded("left"), lambda model: model.model.layers[1].mlp.shared_expert_gate.weight.zero_()
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
