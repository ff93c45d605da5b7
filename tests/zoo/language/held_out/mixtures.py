"""Pairs of mixtures of experts: Mixtral and Qwen 2 MoE."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from tests.zoo.language import parts
from tests.zoo.language.edits import reorder, swap_halves
from tests.zoo.language.models import load
from tests.zoo.models import packed, padded, set_class
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


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


@harmless("packing/mixtral_float32")
def packing_mixtral() -> PairModels:
    """Padded against packed: each expert gets its tokens in the same order, pads aside."""
    model = load("mixtral", attention="sdpa")
    return PairModels(reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=packed())


@harmless("experts_reordered/mixtral_float32")
def experts_reordered_mixtral() -> PairModels:
    """The experts and the router's rows in another order: other weights, the same function."""
    return edited(load("mixtral"), padded("left"), lambda model: reorder(model.model.layers[0].mlp))


@harmless("experts_backend/mixtral_float32")
def experts_backend_mixtral() -> PairModels:
    """The grouped kernel, which transformers takes by itself, against a loop over experts."""
    reference, candidate = load("mixtral"), load("mixtral", experts_implementation="eager")
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("router/qwen2moe_float32", allowed=SEMANTIC, cause=("norm_topk", "gate", "router", "mlp"))
def router_qwen2moe() -> PairModels:
    """The weights of the chosen experts are made to sum to one, which Qwen 2 MoE's do not (Qwen3#687)."""
    reference, candidate = (load("qwen2moe", norm_topk_prob=normalised) for normalised in (False, True))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("experts_swapped/qwen2moe_bfloat16", allowed=STATE, cause=("gate_up_proj",))
def experts_swapped_qwen2moe() -> PairModels:
    """Gate and up of one expert stacked in the other order."""
    return edited(
        load("qwen2moe", torch.bfloat16),
        padded("left"),
        lambda model: swap_halves(model.model.layers[0].mlp.experts.gate_up_proj[2]),
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
    """Token logits are right; probabilities come out as the router's logits."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            set_class(layer.mlp.gate, parts.ProbabilitiesForLogits)

    return edited(load("mixtral"), padded("left") | {"output_router_logits": True}, edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
