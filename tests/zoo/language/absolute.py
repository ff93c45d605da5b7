"""Pairs of decoders whose positions are learnt, biases, absent, or rotary and fused: GPT-2, OPT, Bloom, Mamba, Falcon."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts
from tests.zoo.language.edits import lively_mamba, regroup, ungroup
from tests.zoo.language.models import HIDDEN, load
from tests.zoo.models import one_length, padded, set_class, untie, without
from tests.zoo.pairs import IDENTICAL, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


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


@harmless("attention_backend/gpt2_float32")
def attention_backend_gpt2() -> PairModels:
    """eager against sdpa."""
    return edited(load("gpt2"), padded("left"), lambda model: model.set_attn_implementation("sdpa"))


@harmless("attention_backend/falcon_bfloat16")
def attention_backend_falcon() -> PairModels:
    """eager against sdpa, multi-query, both from the folder."""
    reference, candidate = (load("falcon", torch.bfloat16, backend) for backend in ("eager", "sdpa"))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmless("pad_side/gpt2_float32")
def pad_side_gpt2() -> PairModels:
    """Right against left padding of learnt positions, which are explicit."""
    model = load("gpt2", attention="sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("right"), candidate_inputs=padded("left", columns=17)
    )


@harmless("pad_side/opt_float16")
def pad_side_opt() -> PairModels:
    """Right against left padding without positions, which OPT counts from the mask."""
    model = load("opt", torch.float16)
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded("right", positions=False),
        candidate_inputs=padded("left", positions=False),
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
        reference=model, candidate=parts.Wrapped(deepcopy(model)), inputs=padded("right", positions=False)
    )


@harmless("saved_and_loaded/bloom_float32", allowed=IDENTICAL)
def saved_and_loaded_bloom() -> PairModels:
    """A model against what loading gives of its state dict."""
    reference, candidate = load("bloom"), load("bloom")
    with torch.no_grad():
        for parameter in candidate.parameters():
            parameter.zero_()
    with tempfile.TemporaryFile() as file:
        torch.save(reference.state_dict(), file)
        file.seek(0)
        candidate.load_state_dict(torch.load(file))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left", positions=False))


@harmless("equal_head/gpt2_float16", allowed=IDENTICAL)
def equal_head_gpt2() -> PairModels:
    """A tied head against an untied one with the same values."""
    return edited(load("gpt2", torch.float16), padded("left"), untie)


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


@harmless("shifted_alibi/bloom_float16")
def shifted_alibi_half_bloom() -> PairModels:
    """Expected to be among the hardest: as its sibling, and float16 rounds larger biases more."""
    return edited(
        load("bloom", torch.float16),
        padded("left", columns=13, positions=False),
        lambda model: set_class(model.transformer, parts.ColumnAlibi),
    )


@harmless("cached_decoding/gpt2_float16")
def cached_decoding_gpt2() -> PairModels:
    """Twelve columns at once against four and then one by one from the cache."""
    model = load("gpt2", torch.float16)
    candidate = parts.Decoded(deepcopy(model), 4)
    return PairModels(reference=parts.Decoded(model, 12), candidate=candidate, inputs=one_length())


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
    """Left padding whose mask is dropped: batched generation as it was first written for GPT-2."""
    inputs = padded("left", positions=False)
    return edited(load("gpt2"), inputs, lambda model: set_class(model, parts.Gpt2MaskIgnored))


@harmful("position_offset/opt_bfloat16", allowed=SEMANTIC, cause=("position", "offset"))
def position_offset_opt() -> PairModels:
    """Learnt positions with an offset of 1 where OPT has 2."""
    return edited(
        load("opt", torch.bfloat16),
        padded("right", positions=False),
        lambda model: setattr(model.model.decoder.embed_positions, "offset", 1),
    )


@harmful("left_padded_absolute/gpt2_float16", allowed=SEMANTIC, cause=("position",))
def left_padded_absolute_gpt2() -> PairModels:
    """Left padding without positions: GPT-2 counts the pads (transformers#7552 and many since)."""
    model = load("gpt2", torch.float16)
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded("left"),
        candidate_inputs=without(padded("left"), "position_ids"),
    )


@harmful("alibi/bloom_float32", allowed=STATE, cause=("alibi", "slope"))
def alibi_bloom() -> PairModels:
    """Slopes times positions in bfloat16 within a float32 model."""
    return edited(
        load("bloom"),
        padded("right", positions=False),
        lambda model: set_class(model.transformer, parts.RoundedAlibi),
    )


@harmful("alibi/bloom_bfloat16", allowed=SEMANTIC, cause=("alibi", "slope"))
def alibi_slopes_bloom() -> PairModels:
    """The slopes of a number of heads that is no power of two, by the formula for those that are."""
    return edited(
        load("bloom", torch.bfloat16),
        padded("right", positions=False),
        lambda model: set_class(model.transformer, parts.GeometricAlibi),
    )


@harmful("cast_after_load/falcon_float16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_falcon() -> PairModels:
    """.half() rounds the frequencies, dtype= does not."""
    reference, candidate = load("falcon", torch.float16), load("falcon").half()
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


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


@harmful("activation/opt_float16", allowed=SEMANTIC, cause=("act", "relu", "gelu"))
def activation_opt() -> PairModels:
    """gelu for relu: Galactica's setting in OPT."""
    reference, candidate = (load("opt", torch.float16, activation_function=function) for function in ("relu", "gelu"))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmful("qkv_layout/bloom_float32", allowed=STATE, cause=("query_key_value",))
def qkv_layout_bloom() -> PairModels:
    """A fused projection in blocks of query, key, value where each head has its own three (Megatron conversions)."""

    def edit(model: Any) -> None:
        fused = model.transformer.h[0].self_attention.query_key_value
        regroup(fused.weight, 12)
        regroup(fused.bias, 12)

    return edited(load("bloom"), padded("left", positions=False), edit)


@harmful("qkv_layout/gpt2_bfloat16", allowed=STATE, cause=("c_attn",))
def qkv_layout_gpt2() -> PairModels:
    """A fused projection by heads where blocks of query, key, value were meant."""

    def edit(model: Any) -> None:
        fused = model.transformer.h[1].attn.c_attn
        ungroup(fused.weight, 4, dim=1)
        ungroup(fused.bias, 4)

    return edited(load("gpt2", torch.bfloat16), padded("left"), edit)


@harmful("transposed_weight/gpt2_float32", allowed=STATE, cause=("c_proj",))
def transposed_weight_gpt2() -> PairModels:
    """A square Conv1D kernel converted as if it were a linear layer's."""

    def edit(model: Any) -> None:
        weight = model.transformer.h[0].attn.c_proj.weight
        weight.copy_(weight.T.clone())

    return edited(load("gpt2"), padded("left"), edit)


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


@harmful("state_space_rounded/mamba_float32", allowed=STATE, cause=("a_log",))
def state_space_rounded_mamba() -> PairModels:
    """A_log went through bfloat16 in a float32 model: decay rates off by up to half a per cent."""

    def edit(model: Any) -> None:
        for layer in model.backbone.layers:
            layer.mixer.A_log.copy_(layer.mixer.A_log.bfloat16())

    return edited(lively_mamba(), one_length(), edit)


@harmful("state_space_rounded/mamba_dt_float32", allowed=STATE, cause=("dt_proj",))
def state_space_rounded_dt_mamba() -> PairModels:
    """The bias of the time step went through bfloat16 in a float32 model."""

    def edit(model: Any) -> None:
        for layer in model.backbone.layers:
            layer.mixer.dt_proj.bias.copy_(layer.mixer.dt_proj.bias.bfloat16())

    return edited(lively_mamba(), one_length(), edit)


@harmful("skip_dropped/mamba_bfloat16", allowed=STATE, cause=("mixer.d", ".d", "mixer"))
def skip_dropped_mamba() -> PairModels:
    """D, by which a mixer's input goes past its state, is zero in one layer."""
    return edited(load("mamba", torch.bfloat16), one_length(), lambda model: model.backbone.layers[0].mixer.D.zero_())


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


@harmful("attention_scale/gpt2_float32", allowed=SEMANTIC, cause=("scal", "attn"))
def attention_scale_gpt2() -> PairModels:
    """Scores over the number of the layer as well, as Mistral's GPT-2 was trained."""
    reference, candidate = load("gpt2"), load("gpt2", scale_attn_by_inverse_layer_idx=True)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


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


@harmful("follows_dtype/gpt2_float16", allowed=SEMANTIC, cause=("act", "gelu", "quick"))
def follows_dtype_gpt2() -> PairModels:
    """float16 alone takes the sigmoid approximation of gelu."""

    def edit(model: Any) -> None:
        for block in model.transformer.h:
            block.mlp.act = parts.QuickInHalf(block.mlp.act)

    return edited(load("gpt2", torch.float16), padded("left"), edit)


@harmful("integer_output/gpt2_float32", allowed=SEMANTIC, cause=("token", "greedy"))
def integer_output_gpt2() -> PairModels:
    """The logits are right; the tokens are chosen from half of the vocabulary."""
    model = load("gpt2")
    candidate = parts.GreedyOfHalf(deepcopy(model), scores=True)
    return PairModels(reference=parts.Greedy(model, scores=True), candidate=candidate, inputs=padded("left"))


@harmful("integer_output/opt_float32", allowed=STATE, cause=("lm_head", "embed_tokens", "norm"))
def integer_output_opt() -> PairModels:
    """Tokens are all that comes out; the last norm's bias has lost its sign."""
    return edited(
        parts.Greedy(load("opt"), scores=False),
        padded("right", positions=False),
        lambda model: model.model.model.decoder.final_layer_norm.bias.neg_(),
    )


@harmful("cache_position/gpt2_bfloat16", allowed=SEMANTIC, cause=("position", "decoded"))
def cache_position_gpt2() -> PairModels:
    """Positions one too high behind the prompt."""
    model = load("gpt2", torch.bfloat16)
    candidate = parts.Decoded(deepcopy(model), 6, lambda column: column + 1)
    return PairModels(reference=parts.Decoded(model, 6), candidate=candidate, inputs=one_length())


@harmful("norm_skipped/gpt2_float16", allowed=SEMANTIC, cause=("ln_f", "norm"))
def norm_skipped_gpt2() -> PairModels:
    """No last norm before the head."""
    return edited(
        load("gpt2", torch.float16), padded("left"), lambda model: setattr(model.transformer, "ln_f", nn.Identity())
    )


@harmful("second_call/gpt2_bfloat16", allowed=STATE, cause=("wpe",))
def second_call_gpt2() -> PairModels:
    """The last position of the second call, which is longer, has another's embedding."""
    first = {"input_ids": one_length()["input_ids"][:, :7]}

    def edit(model: Any) -> None:
        model.transformer.wpe.weight[11] = model.transformer.wpe.weight[3]

    return edited(load("gpt2", torch.bfloat16), [first, one_length()], edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
