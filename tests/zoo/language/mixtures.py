"""Pairs of mixtures of experts: Mixtral and Qwen 2 MoE."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from tests.zoo.language import parts
from tests.zoo.language.edits import reorder, swap_halves
from tests.zoo.language.models import load
from tests.zoo.models import one_length, packed, padded, set_class
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless

ORDER = [2, 0, 3, 1]


@harmless("same_twice/qwen2moe_float32", allowed=IDENTICAL)
def same_twice_qwen2moe() -> PairModels:
    """A deep copy."""
    return edited(load("qwen2moe"), padded("left"), lambda model: None)


@harmless("dtype/mixtral_bfloat16")
def dtype_mixtral() -> PairModels:
    """Expected to be among the hardest: bfloat16 may choose another expert where two are close."""
    reference, candidate = (
        load("mixtral", dtype, saved_dtype=torch.bfloat16) for dtype in (torch.float32, torch.bfloat16)
    )
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmless("dtype/qwen2moe_float16")
def dtype_qwen2moe() -> PairModels:
    """Expected to be among the hardest: float16 may choose another expert where two are close."""
    reference, candidate = (load("qwen2moe", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=one_length())


@harmless("packing/mixtral_float32")
def packing_mixtral() -> PairModels:
    """Padded against packed: each expert gets its tokens in the same order, pads aside."""
    model = load("mixtral", attention="sdpa")
    return PairModels(reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=packed())


@harmless("experts_reordered/mixtral_float32")
def experts_reordered_mixtral() -> PairModels:
    """The experts and the router's rows in another order: other weights, the same function."""
    return edited(load("mixtral"), padded("left"), lambda model: reorder(model.model.layers[0].mlp, ORDER))


@harmless("experts_reordered/qwen2moe_bfloat16")
def experts_reordered_qwen2moe() -> PairModels:
    """As its sibling, in both layers and in bfloat16."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            reorder(layer.mlp, ORDER)

    return edited(load("qwen2moe", torch.bfloat16), padded("left"), edit)


@harmless("experts_backend/mixtral_float32")
def experts_backend_mixtral() -> PairModels:
    """The grouped kernel, which transformers takes by itself, against a loop over experts."""
    reference, candidate = load("mixtral"), load("mixtral", experts_implementation="eager")
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


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


@harmful("router/qwen2moe_float32", allowed=SEMANTIC, cause=("norm_topk", "gate", "router", "mlp"))
def router_qwen2moe() -> PairModels:
    """The weights of the chosen experts are made to sum to one, which Qwen 2 MoE's do not (vLLM's default did)."""
    reference, candidate = (load("qwen2moe", norm_topk_prob=normalised) for normalised in (False, True))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("experts_swapped/mixtral_float16", allowed=STATE, cause=("down_proj",))
def experts_swapped_mixtral() -> PairModels:
    """The down projections of two experts swapped: names sorted as text, 1 10 2 .."""

    def edit(model: Any) -> None:
        weight = model.model.layers[1].mlp.experts.down_proj
        weight.copy_(weight[[1, 0, 2, 3]])

    return edited(load("mixtral", torch.float16), padded("left"), edit)


@harmful("experts_swapped/qwen2moe_bfloat16", allowed=STATE, cause=("gate_up_proj",))
def experts_swapped_qwen2moe() -> PairModels:
    """Gate and up of one expert stacked in the other order."""
    return edited(
        load("qwen2moe", torch.bfloat16),
        padded("left"),
        lambda model: swap_halves(model.model.layers[0].mlp.experts.gate_up_proj[2]),
    )


@harmful("shared_expert/qwen2moe_float32", allowed=STATE, cause=("shared_expert",))
def shared_expert_qwen2moe() -> PairModels:
    """The shared expert's gate was never loaded: it is zero, which lets half of the expert through."""
    return edited(
        load("qwen2moe"), padded("left"), lambda model: model.model.layers[1].mlp.shared_expert_gate.weight.zero_()
    )


@harmful("shared_expert/mixtral_float32", allowed=STATE, cause=("gate_up_proj",))
def shared_weights_mixtral() -> PairModels:
    """One expert has the weights of another: an index that was not advanced while loading."""

    def edit(model: Any) -> None:
        weight = model.model.layers[0].mlp.experts.gate_up_proj
        weight[3] = weight[2]

    return edited(load("mixtral"), padded("left"), edit)


@harmful("second_output/mixtral_float32", allowed=SEMANTIC, cause=("router", "gate"))
def second_output_mixtral() -> PairModels:
    """Token logits are right; probabilities come out as the router's logits (transformers#26840 and others)."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            set_class(layer.mlp.gate, parts.ProbabilitiesForLogits)

    return edited(load("mixtral"), padded("left") | {"output_router_logits": True}, edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
