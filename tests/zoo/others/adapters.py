"""Pairs of adapted models (PEFT's LoRA) and of quantised ones (torch.ao, torchao, int8 by hand)."""

from __future__ import annotations

import warnings
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.models import load, padded
from tests.zoo.others import sequential as nets
from tests.zoo.others.convolutional import built
from tests.zoo.others.outputs import Scored
from tests.zoo.others.sequential import frames, tokens
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless

PEFT = ("peft",)
TORCHAO = ("torchao",)


def adapted(model: Any, *, fresh: bool = False, alpha: int = 8, **options: Any) -> Any:
    """A copy of a model with adapters of rank 4 on q_proj and v_proj; what fresh ones add is zero."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], **options)
    torch.manual_seed(51)
    wrapped = get_peft_model(deepcopy(model), config, autocast_adapter_dtype=False).eval()
    if not fresh:
        with torch.no_grad():
            for name, parameter in wrapped.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.05)
    return wrapped


def merged(wrapped: Any) -> Any:
    """The base model with the adapters merged."""
    return deepcopy(wrapped).merge_and_unload().eval()


def dynamic(model: nn.Module) -> nn.Module:
    """A copy whose linear layers torch.ao has quantised to int8."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(deepcopy(model), {nn.Linear}, dtype=torch.qint8)


def weight_only(model: nn.Module) -> nn.Module:
    """A copy whose linear weights torchao has quantised to int8."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    candidate = deepcopy(model)
    quantize_(candidate, Int8WeightOnlyConfig())
    return candidate


def by_hand(model: nn.Module, *, symmetric: bool = True) -> Any:
    """A copy with `Int8Linear` for every linear layer of the blocks' feed-forward."""
    candidate = deepcopy(model)
    nets.replace_linears(candidate, lambda linear: nets.Int8Linear(linear, symmetric=symmetric), name="c_fc")
    return candidate


def lopsided() -> Any:
    """A GPT in bfloat16 whose feed-forward weights are not centred, so that zero points are not zero."""
    model = built(nets.Gpt, torch.bfloat16)
    with torch.no_grad():
        for block in model.blocks:
            block.c_fc.weight.add_(0.04)
    return model


@harmless("lora/llama_float32", needs=PEFT)
def lora_merged_llama() -> PairModels:
    """PEFT's adapters against the same merged and unloaded."""
    reference = adapted(load("llama", torch.float32))
    return PairModels(reference=reference, candidate=merged(reference), inputs=padded())


@harmless("lora/llama_bfloat16", needs=PEFT)
def lora_merged_half_llama() -> PairModels:
    """Expected to be among the hardest: merging in bfloat16 rounds the sum, which is what the dtype asks for."""
    reference = adapted(load("llama", torch.bfloat16))
    return PairModels(reference=reference, candidate=merged(reference), inputs=padded())


@harmless("lora_neutral/llama_float32", needs=PEFT)
def lora_fresh_llama() -> PairModels:
    """A fresh adapter changes nothing; every name has a prefix."""
    model = load("llama", torch.float32)
    return PairModels(reference=model, candidate=adapted(model, fresh=True), inputs=padded())


@harmless("lora_neutral/llama_bfloat16", allowed=IDENTICAL, needs=PEFT)
def lora_disabled_llama() -> PairModels:
    """Trained adapters that are switched off."""
    model = load("llama", torch.bfloat16)
    candidate = adapted(model)
    candidate.base_model.disable_adapter_layers()
    return PairModels(reference=model, candidate=candidate, inputs=padded())


@harmful("lora_wrong/llama_float32", allowed=STATE, cause=("scal", "alpha", "lora"), needs=PEFT)
def lora_alpha_llama() -> PairModels:
    """lora_alpha 16 for 8: the adapters count twice."""
    model = load("llama", torch.float32)
    return PairModels(reference=adapted(model), candidate=adapted(model, alpha=16), inputs=padded())


@harmful("lora_wrong/llama_float16", allowed=STATE, cause=("scal", "rslora", "lora"), needs=PEFT)
def lora_rank_stabilised_llama() -> PairModels:
    """alpha / sqrt(rank) for alpha / rank: use_rslora was lost between training and serving."""
    model = load("llama", torch.float16)
    return PairModels(reference=adapted(model, use_rslora=True), candidate=adapted(model), inputs=padded())


@harmful("lora_wrong/merged_float32", allowed=STATE, cause=("q_proj", "v_proj"), needs=PEFT)
def lora_merged_twice_llama() -> PairModels:
    """Merged twice: into a base that the adapters had been merged into before."""
    reference = adapted(load("llama", torch.float32))
    return PairModels(reference=reference, candidate=merged(adapted(merged(reference))), inputs=padded())


@harmful("lora_off/llama_float32", allowed=STATE, cause=("lora", "adapter", "q_proj"), needs=PEFT)
def lora_off_llama() -> PairModels:
    """The adapters of the candidate are switched off."""
    reference = adapted(load("llama", torch.float32))
    candidate = deepcopy(reference)
    candidate.base_model.disable_adapter_layers()
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("lora_off/llama_bfloat16", allowed=STATE, cause=("lora", "q_proj", "v_proj"), needs=PEFT)
def lora_missing_llama() -> PairModels:
    """The base model alone against the adapted one: the adapter was not loaded."""
    model = load("llama", torch.bfloat16)
    return PairModels(reference=adapted(model), candidate=model, inputs=padded())


@harmful("lora_base/llama_float32", allowed=STATE, cause=("up_proj",), needs=PEFT)
def lora_base_llama() -> PairModels:
    """A fresh adapter over a base of which one weight differs, far from the adapter."""
    model = load("llama", torch.float32)
    candidate = adapted(model, fresh=True)
    with torch.no_grad():
        candidate.base_model.model.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    return PairModels(reference=model, candidate=candidate, inputs=padded())


@harmful("lora_base/llama_bfloat16", allowed=STATE, cause=("q_proj",), needs=PEFT)
def lora_base_adapted_llama() -> PairModels:
    """The same adapters on both sides over bases of which one row of an adapted weight differs."""
    model = load("llama", torch.bfloat16)
    return edited(
        adapted(model),
        padded(),
        lambda model: model.base_model.model.model.layers[0].self_attn.q_proj.base_layer.weight[7].mul_(1.5),
    )


@harmless("quantised/scored_float32")
def quantised_dynamic_scored() -> PairModels:
    """torch.ao's dynamic int8, which is declared by the type of its modules: rounding that was asked for."""
    model = built(Scored)
    return PairModels(reference=model, candidate=dynamic(model), inputs=frames())


@harmless("quantised/gpt_float32", needs=TORCHAO)
def quantised_torchao_gpt() -> PairModels:
    """torchao's int8 weights, a scale a row."""
    model = built(nets.Gpt)
    return PairModels(reference=model, candidate=weight_only(model), inputs=tokens())


@harmless("quantised/llama_bfloat16", needs=TORCHAO)
def quantised_torchao_llama() -> PairModels:
    """torchao's int8 weights of a bfloat16 Llama."""
    model = load("llama", torch.bfloat16)
    return PairModels(reference=model, candidate=weight_only(model), inputs=padded())


@harmless("quantised/gpt_bfloat16")
def quantised_by_hand_gpt() -> PairModels:
    """Hand-written int8 layers with a scale and a zero point a row, whose type and whose int8 buffer say so."""
    model = lopsided()
    return PairModels(reference=model, candidate=by_hand(model, symmetric=False), inputs=tokens())


@harmful("quantised_wrong/gpt_float32", allowed=STATE, cause=("scale", "c_fc"))
def quantised_scale_gpt() -> PairModels:
    """The scales of a hand-written int8 layer are one row off."""

    def edit(model: Any) -> None:
        scale = model.blocks[1].c_fc.scale
        scale.copy_(scale.roll(1, dims=0))

    return edited(by_hand(built(nets.Gpt)), tokens(), edit)


@harmful("quantised_wrong/gpt_bfloat16", allowed=STATE, cause=("zero_point", "c_fc"))
def quantised_zero_point_gpt() -> PairModels:
    """The zero points are left out, against the model that was quantised."""
    model = lopsided()
    candidate = by_hand(model, symmetric=False)
    candidate.blocks[0].c_fc.zero_point.zero_()
    return PairModels(reference=model, candidate=candidate, inputs=tokens())


@harmful("quantised_wrong/scored_float32", allowed=STATE, cause=("expand",))
def quantised_dynamic_changed_scored() -> PairModels:
    """torch.ao's dynamic int8 of a model of which one row of a weight is another's."""
    model = built(Scored)
    changed = deepcopy(model)
    with torch.no_grad():
        changed.expand.weight[3] = changed.expand.weight[4]
    return PairModels(reference=model, candidate=dynamic(changed), inputs=frames())


@harmful("quantised_wrong/llama_bfloat16", allowed=STATE, cause=("down_proj",), needs=TORCHAO)
def quantised_torchao_changed_llama() -> PairModels:
    """torchao's int8 weights on both sides; one matrix was quantised with rows in another order."""
    model = load("llama", torch.bfloat16)
    changed = deepcopy(model)
    with torch.no_grad():
        weight = changed.model.layers[1].mlp.down_proj.weight
        weight[:8] = weight[:8].flip(0)
    return PairModels(reference=weight_only(model), candidate=weight_only(changed), inputs=padded())


@harmful("quantised_other/gpt_float32", allowed=SEMANTIC, cause=("gelu", "relu", "activation"))
def quantised_activation_gpt() -> PairModels:
    """int8 layers, and beside them relu for gelu in one block: quantisation does not excuse it."""
    model = built(nets.Gpt)
    candidate = by_hand(model)
    candidate.blocks[0].activation = nn.ReLU()
    return PairModels(reference=model, candidate=candidate, inputs=tokens())


@harmful("quantised_other/scored_float32", allowed=SEMANTIC, cause=("second", "factor"))
def quantised_second_scored() -> PairModels:
    """torch.ao's dynamic int8, and beside it a score that is three times as large."""
    model = built(Scored)
    candidate = dynamic(model)
    candidate.second.factor = 3.0
    return PairModels(reference=model, candidate=candidate, inputs=frames())


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
