"""Pairs of decoders with learnt positions, biases, or none, and of Falcon: GPT-2, OPT, Bloom, Mamba."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from typing import Any

import torch

from tests.zoo.language import parts, wrappers
from tests.zoo.language.edits import lively_mamba, regroup
from tests.zoo.language.models import load
from tests.zoo.models import one_length, padded, set_class, untie, without
from tests.zoo.pairs import IDENTICAL, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("attention_backend/gpt2_float32")
def attention_backend_gpt2() -> PairModels:
    """eager against sdpa."""
    return edited(load("gpt2"), padded("left"), lambda model: model.set_attn_implementation("sdpa"))


@harmless("attention_backend/falcon_bfloat16")
def attention_backend_falcon() -> PairModels:
    """eager against sdpa, multi-query, both from the folder."""
    reference, candidate = (load("falcon", torch.bfloat16, backend) for backend in ("eager", "sdpa"))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


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


@harmless("shifted_alibi/bloom_float16")
def shifted_alibi_half_bloom() -> PairModels:
    """Expected to be among the hardest: biases that count the pads, which float16 rounds more."""
    return edited(
        load("bloom", torch.float16),
        padded("left", columns=13, positions=False),
        lambda model: set_class(model.transformer, parts.ColumnAlibi),
    )


@harmless("cached_decoding/gpt2_float16")
def cached_decoding_gpt2() -> PairModels:
    """Twelve columns at once against four and then one by one from the cache."""
    model = load("gpt2", torch.float16)
    candidate = wrappers.Decoded(deepcopy(model), 4)
    return PairModels(reference=wrappers.Decoded(model, 12), candidate=candidate, inputs=one_length())


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
    """Left padding without positions: GPT-2 counts the pads (transformers#3021, ParlAI#3193)."""
    model = load("gpt2", torch.float16)
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded("left"),
        candidate_inputs=without(padded("left"), "position_ids"),
    )


@harmful("alibi/bloom_float32", allowed=STATE, cause=("alibi", "slope"))
def alibi_bloom() -> PairModels:
    """Slopes times positions in bfloat16 within a float32 model (flash-attention#845)."""
    return edited(
        load("bloom"),
        padded("right", positions=False),
        lambda model: set_class(model.transformer, parts.RoundedAlibi),
    )


@harmful("cast_after_load/falcon_float16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_falcon() -> PairModels:
    """.half() rounds the frequencies, dtype= does not."""
    reference, candidate = load("falcon", torch.float16), load("falcon").half()
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


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


@harmful("transposed_weight/gpt2_float32", allowed=STATE, cause=("c_proj",))
def transposed_weight_gpt2() -> PairModels:
    """A square Conv1D kernel converted as if it were a linear layer's."""

    def edit(model: Any) -> None:
        weight = model.transformer.h[0].attn.c_proj.weight
        weight.copy_(weight.T.clone())

    return edited(load("gpt2"), padded("left"), edit)


@harmful("state_space_rounded/mamba_float32", allowed=STATE, cause=("a_log",))
def state_space_rounded_mamba() -> PairModels:
    """A_log went through bfloat16 in a float32 model: decay rates off by up to half a per cent (mlx-lm#565)."""

    def edit(model: Any) -> None:
        for layer in model.backbone.layers:
            layer.mixer.A_log.copy_(layer.mixer.A_log.bfloat16())

    return edited(lively_mamba(), one_length(), edit)


@harmful("skip_dropped/mamba_bfloat16", allowed=STATE, cause=("mixer.d", ".d", "mixer"))
def skip_dropped_mamba() -> PairModels:
    """D, by which a mixer's input goes past its state, is zero in one layer."""
    return edited(load("mamba", torch.bfloat16), one_length(), lambda model: model.backbone.layers[0].mixer.D.zero_())


@harmful("attention_scale/gpt2_float32", allowed=SEMANTIC, cause=("scal", "attn"))
def attention_scale_gpt2() -> PairModels:
    """Scores over the number of the layer as well, as Mistral's GPT-2 was trained."""
    reference, candidate = load("gpt2"), load("gpt2", scale_attn_by_inverse_layer_idx=True)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("follows_dtype/gpt2_float16", allowed=SEMANTIC, cause=("act", "gelu", "quick"))
def follows_dtype_gpt2() -> PairModels:
    """float16 alone takes the sigmoid approximation of gelu."""

    def edit(model: Any) -> None:
        for block in model.transformer.h:
            block.mlp.act = parts.QuickInHalf(block.mlp.act)

    return edited(load("gpt2", torch.float16), padded("left"), edit)


@harmful("integer_output/opt_float32", allowed=STATE, cause=("lm_head", "embed_tokens", "norm"))
def integer_output_opt() -> PairModels:
    """Tokens are all that comes out; the last norm's bias has lost its sign."""
    return edited(
        wrappers.Greedy(load("opt"), scores=False),
        padded("right", positions=False),
        lambda model: model.model.model.decoder.final_layer_norm.bias.neg_(),
    )


@harmful("cache_position/gpt2_bfloat16", allowed=SEMANTIC, cause=("position", "decoded"))
def cache_position_gpt2() -> PairModels:
    """Positions one too high behind the prompt."""
    model = load("gpt2", torch.bfloat16)
    candidate = wrappers.Decoded(deepcopy(model), 6, lambda column: column + 1)
    return PairModels(reference=wrappers.Decoded(model, 6), candidate=candidate, inputs=one_length())


@harmful("second_call/gpt2_bfloat16", allowed=STATE, cause=("wpe",))
def second_call_gpt2() -> PairModels:
    """The last position of the second call, which is longer, has another's embedding."""
    first = {"input_ids": one_length()["input_ids"][:, :7]}

    def edit(model: Any) -> None:
        model.transformer.wpe.weight[11] = model.transformer.wpe.weight[3]

    return edited(load("gpt2", torch.bfloat16), [first, one_length()], edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
