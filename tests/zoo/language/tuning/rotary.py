"""Pairs of decoders with rotary positions: Llama, Qwen 2 and 3, Gemma 1 to 3, GPT-NeoX."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from typing import Any

import torch

from tests.zoo.language import parts, wrappers
from tests.zoo.language.edits import interleave_heads
from tests.zoo.language.models import embedded, far, load
from tests.zoo.models import one_length, packed, padded, set_class, without
from tests.zoo.pairs import IDENTICAL, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless
from tests.zoo.parts import NoAttentionResidual

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@harmless("dtype/gptneox_float16")
def dtype_gptneox() -> PairModels:
    """Expected to be among the hardest: weights saved in float32, so that float16 rounds them as well."""
    reference, candidate = (load("gptneox", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmless("dtype_of_embeds/llama_bfloat16")
def dtype_of_embeds_llama() -> PairModels:
    """Embeddings as input, cast with the model."""
    reference, candidate = (load("llama", dtype) for dtype in (torch.float32, torch.bfloat16))
    inputs = embedded(candidate, padded("left"))
    wide = inputs | {"inputs_embeds": inputs["inputs_embeds"].float()}
    return PairModels(reference=reference, candidate=candidate, inputs=wide, candidate_inputs=inputs)


@harmless("embeds_for_ids/llama_float16", allowed=IDENTICAL)
def embeds_for_ids_llama() -> PairModels:
    """Token ids against the embeddings that they stand for."""
    model, inputs = load("llama", torch.float16), padded("left")
    candidate = deepcopy(model)
    return PairModels(reference=model, candidate=candidate, inputs=inputs, candidate_inputs=embedded(candidate, inputs))


@harmless("packing/gemma_bfloat16")
def packing_gemma() -> PairModels:
    """Padded on the right against packed, explicit positions."""
    model = load("gemma", torch.bfloat16, "sdpa")
    return PairModels(reference=model, candidate=deepcopy(model), inputs=padded(), candidate_inputs=packed())


@harmless("saved_and_loaded/gemma3_bfloat16", allowed=IDENTICAL)
def saved_and_loaded_gemma3() -> PairModels:
    """A model against what loading gives of what it saved."""
    reference = load("gemma3", torch.bfloat16)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        reference.save_pretrained(folder)
        loaded = type(reference).from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    return PairModels(reference=reference, candidate=loaded.eval(), inputs=padded("left"))


@harmless("rewritten_part/llama_bfloat16")
def rewritten_norm_llama() -> PairModels:
    """torch's RMS norm for transformers'."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            set_class(layer.input_layernorm, parts.TorchNorm)

    return edited(load("llama", torch.bfloat16), padded("right"), edit)


@harmless("compiled/qwen2_float32")
def compiled_qwen2() -> PairModels:
    """One MLP under torch.compile, traced and run by eager kernels."""

    def edit(model: Any) -> None:
        model.model.layers[0].mlp = torch.compile(model.model.layers[0].mlp, backend="aot_eager")

    return edited(load("qwen2"), padded("left"), edit)


@harmless("cached_decoding/llama_float32")
def cached_decoding_llama() -> PairModels:
    """Twelve columns at once against six and then one by one from the cache."""
    model = load("llama", attention="sdpa")
    return PairModels(
        reference=wrappers.Decoded(model, 12), candidate=wrappers.Decoded(deepcopy(model), 6), inputs=one_length()
    )


@harmless("idle_argument/gemma2_bfloat16")
def idle_argument_gemma2() -> PairModels:
    """The cache on, without a use for it."""
    model = load("gemma2", torch.bfloat16)
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded("left"),
        candidate_inputs=padded("left") | {"use_cache": True},
    )


@harmful("causal_off/qwen2_bfloat16", allowed=SEMANTIC, cause=("mask", "causal", "self_attn", "attention"))
def causal_off_qwen2() -> PairModels:
    """One layer that sees the future."""
    return edited(
        load("qwen2", torch.bfloat16),
        one_length(),
        lambda model: set_class(model.model.layers[1].self_attn, parts.UnmaskedQwen2Attention),
    )


@harmful("window/gemma2_float32", allowed=SEMANTIC, cause=("window", "mask"))
def window_off_by_one_gemma2() -> PairModels:
    """A window of 6 for 5: one library counts the token itself, another does not (Megatron-Bridge#2656)."""
    reference, candidate = load("gemma2"), load("gemma2", sliding_window=6)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right"))


@harmful("packed_without_restart/gemma_float32", allowed=SEMANTIC, cause=("position", "mask"))
def packed_without_restart_gemma() -> PairModels:
    """Packed without any positions, as a collator that flattens and forgets them."""
    model = load("gemma", attention="sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=packed(), candidate_inputs=packed(positions=False)
    )


@harmful("rotary_layout/gemma_float32", allowed=STATE, cause=("q_proj", "k_proj"))
def rotary_layout_gemma() -> PairModels:
    """Query and key rows in pairs for a model of halves: a conversion that forgot to permute them (llama.cpp)."""

    def edit(model: Any) -> None:
        for projection in (model.model.layers[0].self_attn.q_proj, model.model.layers[0].self_attn.k_proj):
            interleave_heads(projection.weight)

    return edited(load("gemma"), padded("left"), edit)


@harmful("rotary_scaling/llama_float32", allowed=STATE, cause=("inv_freq", "rope", "rotary"))
def rotary_scaling_llama() -> PairModels:
    """A config whose linear rope scaling was not read."""
    reference, candidate = (load("llama", rope_parameters=rope) for rope in (LINEAR, PLAIN))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("cast_after_load/gemma3_bfloat16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_gemma3() -> PairModels:
    """.to(bfloat16) rounds the frequencies of both kinds of layer, dtype= does not (transformers#30709)."""
    candidate = load("gemma3", torch.float32).to(torch.bfloat16)
    return PairModels(reference=load("gemma3", torch.bfloat16), candidate=candidate, inputs=padded("left"))


@harmful("softcap_dropped/gemma2_bfloat16", allowed=SEMANTIC, cause=("softcap", "lm_head", "logits"))
def softcap_dropped_gemma2() -> PairModels:
    """Logits that are not capped."""
    return edited(
        load("gemma2", torch.bfloat16),
        padded("left"),
        lambda model: setattr(model.config, "final_logit_softcapping", None),
    )


@harmful("attention_scale/gemma2_float16", allowed=SEMANTIC, cause=("scal", "attention", "self_attn"))
def attention_scale_gemma2() -> PairModels:
    """Scores scaled by the number of heads where query_pre_attn_scalar was meant: Gemma 2 27B in early ports."""
    reference, candidate = load("gemma2", torch.float16), load("gemma2", torch.float16, query_pre_attn_scalar=64)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("layers_swapped/qwen2_float16", allowed=STATE, cause=("mlp", "gate_proj", "up_proj", "down_proj"))
def layers_swapped_qwen2() -> PairModels:
    """The MLPs of both layers swapped, as file shards that were sorted by their names."""

    def edit(model: Any) -> None:
        first, second = model.model.layers
        first.mlp, second.mlp = second.mlp, first.mlp

    return edited(load("qwen2", torch.float16), padded("left"), edit)


@harmful("bias_dropped/qwen2_float32", allowed=STATE, cause=("bias",))
def bias_dropped_qwen2() -> PairModels:
    """The value bias of one layer is zero: a converter for Llama, which has none."""
    return edited(load("qwen2"), padded("left"), lambda model: model.model.layers[0].self_attn.v_proj.bias.zero_())


@harmful("angles_in_half/qwen2_float16", allowed=STATE, cause=("rotary", "halfangles", "position"))
def angles_in_half_qwen2() -> PairModels:
    """Angles in float16 from position 6000 on, where four positions are one (gpt-neox#1003)."""
    return edited(
        load("qwen2", torch.float16), far(6000), lambda model: set_class(model.model.rotary_emb, parts.HalfAnglesQwen2)
    )


@harmful("follows_dtype/gemma_bfloat16", allowed=SEMANTIC, cause=("norm", "louder"))
def follows_dtype_gemma() -> PairModels:
    """A norm with a branch that only bfloat16 takes, and that is a quarter off."""
    return edited(
        load("gemma", torch.bfloat16),
        padded("left"),
        lambda model: set_class(model.model.layers[1].input_layernorm, parts.LouderInBfloat16),
    )


@harmful("second_output/llama_float32", allowed=SEMANTIC, cause=("hidden_states", "hiddenstates"))
def second_output_llama() -> PairModels:
    """The logits are right; each of the hidden states is the one before."""
    model = load("llama")
    inputs = padded("right") | {"output_hidden_states": True}
    candidate = wrappers.EarlierHiddenStates(deepcopy(model))
    return PairModels(reference=wrappers.HiddenStates(model), candidate=candidate, inputs=inputs)


@harmful("cache_position/llama_float32", allowed=SEMANTIC, cause=("position", "decoded"))
def cache_position_llama() -> PairModels:
    """Positions that start again at 0 behind the prompt."""
    model = load("llama")
    candidate = wrappers.Decoded(deepcopy(model), 6, lambda column: column - 6)
    return PairModels(reference=wrappers.Decoded(model, 6), candidate=candidate, inputs=one_length())


@harmful("skip_dropped/llama_bfloat16", allowed=SEMANTIC, cause=("layers.1", "residual"))
def skip_dropped_llama() -> PairModels:
    """The second layer's attention is added to nothing."""
    return edited(
        load("llama", torch.bfloat16),
        padded("left"),
        lambda model: set_class(model.model.layers[1], NoAttentionResidual),
    )


@harmful("second_call/gemma_float32", allowed=STATE, cause=("embed_tokens",))
def second_call_gemma() -> PairModels:
    """One row of the embedding was edited, and only the second of two calls reads it."""
    first, second = one_length(), without(padded("left"), "position_ids")
    fresh = sorted(set(second["input_ids"].unique().tolist()) - set(first["input_ids"].unique().tolist()) - {0})

    def edit(model: Any) -> None:
        model.model.embed_tokens.weight[fresh[0]] *= 1.5

    return edited(load("gemma"), [first, second], edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
