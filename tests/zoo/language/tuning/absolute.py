"""Pairs of decoders with learnt positions, biases, or none, and of Falcon: GPT-2, OPT, Bloom, Mamba."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts, wrappers
from tests.zoo.language.edits import lively_mamba, ungroup
from tests.zoo.language.models import HIDDEN, load
from tests.zoo.models import one_length, padded, set_class, untie
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("same_twice/mamba_bfloat16", allowed=IDENTICAL)
def same_twice_mamba() -> PairModels:
    """One folder loaded twice."""
    reference, candidate = (load("mamba", torch.bfloat16) for _ in range(2))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmless("dtype/mamba_float16")
def dtype_mamba() -> PairModels:
    """A state-space model in float16, its weights rounded with it."""
    reference, candidate = (load("mamba", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=one_length())


@harmless("dtype/gpt2_float16")
def dtype_gpt2() -> PairModels:
    """float16 asked for, learnt positions, left padding with explicit positions."""
    reference, candidate = (load("gpt2", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmless("pad_side/gpt2_float32")
def pad_side_gpt2() -> PairModels:
    """Right against left padding of learnt positions, which are explicit."""
    model = load("gpt2", attention="sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("right"), candidate_inputs=padded("left", columns=17)
    )


@harmless("fused_projection/gpt2_bfloat16")
def fused_projection_gpt2() -> PairModels:
    """Three linear layers for the one that GPT-2 has."""

    def edit(model: Any) -> None:
        for block in model.transformer.h:
            block.attn.c_attn = parts.SplitConv1D(block.attn.c_attn)

    return edited(load("gpt2", torch.bfloat16), padded("left"), edit)


@harmless("wrapped/opt_bfloat16", allowed=IDENTICAL)
def wrapped_opt() -> PairModels:
    """The same model below a module of another name, as data-parallel wrappers hold it."""
    model = load("opt", torch.bfloat16)
    return PairModels(
        reference=model, candidate=wrappers.Wrapped(deepcopy(model)), inputs=padded("right", positions=False)
    )


@harmless("rewritten_part/gpt2_float32")
def rewritten_part_gpt2() -> PairModels:
    """Layer norms written out."""

    def edit(model: Any) -> None:
        for block in model.transformer.h:
            set_class(block.ln_1, parts.WrittenLayerNorm)
            set_class(block.ln_2, parts.WrittenLayerNorm)

    return edited(load("gpt2"), padded("left"), edit)


@harmless("shifted_alibi/bloom_float32")
def shifted_alibi_bloom() -> PairModels:
    """Biases that count the pads on the left: the whole row of scores moves, so softmax gives the same."""
    return edited(
        load("bloom"),
        padded("left", positions=False),
        lambda model: set_class(model.transformer, parts.ColumnAlibi),
    )


@harmless("idle_argument/opt_float32")
def idle_argument_opt() -> PairModels:
    """A mask of ones and positions from 0 against neither."""
    model, inputs = load("opt"), one_length()
    ids = inputs["input_ids"]
    explicit = {"attention_mask": torch.ones_like(ids), "position_ids": torch.arange(ids.shape[1]).expand_as(ids)}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=inputs | explicit)


@harmless("unused_part/gpt2_bfloat16", allowed=IDENTICAL)
def unused_part_gpt2() -> PairModels:
    """A value head, as reinforcement learning adds one, that this call does not use."""
    torch.manual_seed(0)
    return edited(
        load("gpt2", torch.bfloat16),
        padded("left"),
        lambda model: setattr(model, "value_head", nn.Linear(HIDDEN, 1, dtype=torch.bfloat16)),
    )


@harmless("several_calls/falcon_bfloat16")
def several_calls_falcon() -> PairModels:
    """Two calls of different widths, eager against sdpa."""
    reference, candidate = (load("falcon", torch.bfloat16, backend) for backend in ("eager", "sdpa"))
    inputs = [one_length(), padded("right", positions=False)]
    return PairModels(reference=reference, candidate=candidate, inputs=inputs)


@harmful("pads_attended/gpt2_float32", allowed=SEMANTIC, cause=("mask",))
def pads_attended_gpt2() -> PairModels:
    """Left padding whose mask is dropped, as in batched generation that hands on the ids alone."""
    inputs = padded("left", positions=False)
    return edited(load("gpt2"), inputs, lambda model: set_class(model, parts.Gpt2MaskIgnored))


@harmful("alibi/bloom_bfloat16", allowed=SEMANTIC, cause=("alibi", "slope"))
def alibi_slopes_bloom() -> PairModels:
    """The slopes of a number of heads that is no power of two, by the formula for those that are (mlx#343)."""
    return edited(
        load("bloom", torch.bfloat16),
        padded("right", positions=False),
        lambda model: set_class(model.transformer, parts.GeometricAlibi),
    )


@harmful("epsilon/gpt2_float32", allowed=SEMANTIC, cause=("eps", "norm", "ln_"))
def epsilon_gpt2() -> PairModels:
    """BERT's layer_norm_epsilon of 1e-12 for 1e-5."""
    reference, candidate = load("gpt2"), load("gpt2", layer_norm_epsilon=1e-12)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("activation/gpt2_float32", allowed=SEMANTIC, cause=("act", "gelu"))
def activation_gpt2() -> PairModels:
    """The exact gelu for the one by tanh."""
    reference, candidate = load("gpt2"), load("gpt2", activation_function="gelu")
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("qkv_layout/gpt2_bfloat16", allowed=STATE, cause=("c_attn",))
def qkv_layout_gpt2() -> PairModels:
    """A fused projection by heads where blocks of query, key, value were meant."""

    def edit(model: Any) -> None:
        fused = model.transformer.h[1].attn.c_attn
        ungroup(fused.weight, 4, dim=1)
        ungroup(fused.bias, 4)

    return edited(load("gpt2", torch.bfloat16), padded("left"), edit)


@harmful("row_edited/opt_bfloat16", allowed=STATE, cause=("embed_tokens", "lm_head"))
def row_edited_opt() -> PairModels:
    """One token's row of a tied embedding is another's."""
    inputs = padded("right", positions=False)

    def edit(model: Any) -> None:
        weight = model.model.decoder.embed_tokens.weight
        weight[inputs["input_ids"][1, 3]] = weight[5]

    return edited(load("opt", torch.bfloat16), inputs, edit)


@harmful("bias_dropped/opt_float16", allowed=STATE, cause=("bias",))
def bias_dropped_opt() -> PairModels:
    """Biases of one fc2 are zero: an export that knows matrices alone."""
    return edited(
        load("opt", torch.float16),
        padded("right", positions=False),
        lambda model: model.model.decoder.layers[1].fc2.bias.zero_(),
    )


@harmful("state_space_rounded/mamba_dt_float32", allowed=STATE, cause=("dt_proj",))
def state_space_rounded_dt_mamba() -> PairModels:
    """The bias of the time step went through bfloat16 in a float32 model."""

    def edit(model: Any) -> None:
        for layer in model.backbone.layers:
            layer.mixer.dt_proj.bias.copy_(layer.mixer.dt_proj.bias.bfloat16())

    return edited(lively_mamba(), one_length(), edit)


@harmful("layer_dropped/mamba_float16", allowed=SEMANTIC, cause=("layer",))
def layer_dropped_mamba() -> PairModels:
    """The second of two layers is not there."""
    return edited(load("mamba", torch.float16), one_length(), lambda model: model.backbone.layers.pop(1))


@harmful("parallel_residual/falcon_float32", allowed=SEMANTIC, cause=("layer", "parallel", "residual", "norm", "mlp"))
def parallel_residual_falcon() -> PairModels:
    """The MLP reads the attention's output where it was trained on the norm's (Falcon 40B's code for 7B's weights)."""
    reference = load("falcon")

    def edit(model: Any) -> None:
        model.config.parallel_attn = False
        for layer in model.transformer.h:
            layer.post_attention_layernorm = deepcopy(layer.input_layernorm)

    return edited(reference, padded("right", positions=False), edit)


@harmful("head_drifted/gpt2_bfloat16", allowed=STATE, cause=("lm_head",))
def head_drifted_gpt2() -> PairModels:
    """A tied head against an untied one that went on alone."""

    def edit(model: Any) -> None:
        untie(model)
        model.lm_head.weight += 0.02 * torch.randn(model.lm_head.weight.shape).sign().to(torch.bfloat16)

    torch.manual_seed(0)
    return edited(load("gpt2", torch.bfloat16), padded("left"), edit)


@harmful("training_mode/gpt2_float32", allowed=STATE, cause=("dropout", "train"))
def training_mode_gpt2() -> PairModels:
    """The reference was left in training mode."""
    reference = load("gpt2").train()
    return edited(reference, padded("left"), lambda model: model.eval())


@harmful("integer_output/gpt2_float32", allowed=SEMANTIC, cause=("token", "greedy"))
def integer_output_gpt2() -> PairModels:
    """The logits are right; the tokens are chosen from half of the vocabulary."""
    model = load("gpt2")
    candidate = wrappers.GreedyOfHalf(deepcopy(model), scores=True)
    return PairModels(reference=wrappers.Greedy(model, scores=True), candidate=candidate, inputs=padded("left"))


@harmful("norm_skipped/gpt2_float16", allowed=SEMANTIC, cause=("ln_f", "norm"))
def norm_skipped_gpt2() -> PairModels:
    """No last norm before the head."""
    return edited(
        load("gpt2", torch.float16), padded("left"), lambda model: setattr(model.transformer, "ln_f", nn.Identity())
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
