"""Pairs of decoders with rotary positions: Llama, Qwen 2 and 3, Gemma 1 to 3, GPT-NeoX."""

from __future__ import annotations

import tempfile
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts
from tests.zoo.language.edits import interleave_heads
from tests.zoo.language.models import embedded, far, load
from tests.zoo.models import one_length, packed, padded, set_class, without
from tests.zoo.pairs import IDENTICAL, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless
from tests.zoo.parts import NoAttentionResidual, Pooled, Reordered, last_by_count, last_column

LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}


@harmless("dtype/gemma2_bfloat16")
def dtype_gemma2() -> PairModels:
    """Weights saved in bfloat16 loaded in float32 and in bfloat16; windows, caps and norms of 1 + w."""
    reference, candidate = (
        load("gemma2", dtype, saved_dtype=torch.bfloat16) for dtype in (torch.float32, torch.bfloat16)
    )
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


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


@harmless("embeds_for_ids/gemma3_float32", allowed=IDENTICAL)
def embeds_for_ids_gemma3() -> PairModels:
    """Token ids against their embeddings, which are scaled where they are looked up."""
    model, inputs = load("gemma3"), one_length()
    candidate = deepcopy(model)
    return PairModels(reference=model, candidate=candidate, inputs=inputs, candidate_inputs=embedded(candidate, inputs))


@harmless("permuted_batch/qwen2_float16")
def permuted_batch_qwen2() -> PairModels:
    """The rows of a batch in another order, put back at the end."""
    model = load("qwen2", torch.float16, "sdpa")
    candidate = Reordered(deepcopy(model), (1, 2, 0))
    return PairModels(reference=Reordered(model, (0, 1, 2)), candidate=candidate, inputs=padded("left"))


@harmless("packing/gemma_bfloat16")
def packing_gemma() -> PairModels:
    """Padded on the right against packed, explicit positions."""
    model = load("gemma", torch.bfloat16, "sdpa")
    return PairModels(reference=model, candidate=deepcopy(model), inputs=padded(), candidate_inputs=packed())


@harmless("fused_projection/llama_float32")
def fused_projection_llama() -> PairModels:
    """Gate and up as one matrix in every layer, as vLLM and MLX load them."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            set_class(layer.mlp, parts.FusedMlp)
            layer.mlp.fuse()

    return edited(load("llama"), padded("left"), edit)


@harmless("saved_and_loaded/gemma3_bfloat16", allowed=IDENTICAL)
def saved_and_loaded_gemma3() -> PairModels:
    """A model against what loading gives of what it saved."""
    reference = load("gemma3", torch.bfloat16)
    with tempfile.TemporaryDirectory(prefix="zoo-") as folder:
        reference.save_pretrained(folder)
        loaded = type(reference).from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="eager")
    return PairModels(reference=reference, candidate=loaded.eval(), inputs=padded("left"))


@harmless("fresh_adapter/qwen3_bfloat16")
def fresh_adapter_qwen3() -> PairModels:
    """A LoRA that adds zeros to every query projection."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            layer.self_attn.q_proj = parts.Lora(layer.self_attn.q_proj, scale=0.0)

    return edited(load("qwen3", torch.bfloat16), padded("left"), edit)


@harmless("merged_adapter/qwen3_float32")
def merged_adapter_qwen3() -> PairModels:
    """A LoRA beside a value projection against the same one merged into it."""
    reference = load("qwen3")
    attention = reference.model.layers[1].self_attn
    with torch.no_grad():
        attention.v_proj = parts.Lora(attention.v_proj, scale=0.02)

    def edit(model: Any) -> None:
        attention = model.model.layers[1].self_attn
        attention.v_proj = attention.v_proj.merged()

    return edited(reference, padded("left"), edit)


@harmless("padded_vocabulary/qwen2_float32")
def padded_vocabulary_qwen2() -> PairModels:
    """320 rows of embedding and head where 300 are used."""

    def edit(model: Any) -> None:
        model.resize_token_embeddings(pad_to_multiple_of=64, mean_resizing=False)

    return edited(load("qwen2"), padded("left"), edit)


@harmless("rewritten_part/llama_bfloat16")
def rewritten_norm_llama() -> PairModels:
    """torch's RMS norm for transformers'."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            set_class(layer.input_layernorm, parts.TorchNorm)

    return edited(load("llama", torch.bfloat16), padded("right"), edit)


@harmless("folded_norm/qwen2_float32")
def folded_norm_qwen2() -> PairModels:
    """The weight of a norm multiplied into the three projections behind it."""

    def edit(model: Any) -> None:
        layer = model.model.layers[1]
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight *= layer.input_layernorm.weight
        layer.input_layernorm.weight.fill_(1.0)

    return edited(load("qwen2"), padded("left"), edit)


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
        reference=parts.Decoded(model, 12), candidate=parts.Decoded(deepcopy(model), 6), inputs=one_length()
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


@harmless("several_calls/qwen3_float16", allowed=IDENTICAL)
def several_calls_qwen3() -> PairModels:
    """Two calls, padded and packed, to a copy."""
    model = load("qwen3", torch.float16)
    return PairModels(reference=model, candidate=deepcopy(model), inputs=[padded("left"), packed()])


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
    """A window of 6 for 5, as where one library counts the token itself and another does not."""
    reference, candidate = load("gemma2"), load("gemma2", sliding_window=6)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right"))


@harmful("window/gemma3_bfloat16", allowed=SEMANTIC, cause=("window", "mask", "layer_types"))
def window_dropped_gemma3() -> PairModels:
    """Attention over everything in a layer that was trained with a window."""
    reference, candidate = load("gemma3", torch.bfloat16), load("gemma3", torch.bfloat16, sliding_window=64)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("packed_without_restart/qwen2_bfloat16", allowed=SEMANTIC, cause=("position", "mask"))
def packed_without_restart_qwen2() -> PairModels:
    """Packed with positions that restart against packed with positions that go on: the texts see each other."""
    model, inputs = load("qwen2", torch.bfloat16, "sdpa"), packed()
    running = inputs | {"position_ids": torch.arange(inputs["input_ids"].shape[1])[None]}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=running)


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


@harmful("rotary_layout/gptneox_bfloat16", allowed=SEMANTIC, cause=("rotary", "interleaved"))
def rotary_layout_gptneox() -> PairModels:
    """The table is laid out in pairs and the queries are rotated in halves: GPT-J's table in GPT-NeoX."""

    def edit(model: Any) -> None:
        model.gpt_neox.rotary_emb = parts.InterleavedTable(model.gpt_neox.rotary_emb)

    return edited(load("gptneox", torch.bfloat16), padded("right", positions=False), edit)


@harmful("rotary_scaling/llama_float32", allowed=STATE, cause=("inv_freq", "rope", "rotary"))
def rotary_scaling_llama() -> PairModels:
    """A config whose linear rope scaling was not read."""
    reference, candidate = (load("llama", rope_parameters=rope) for rope in (LINEAR, PLAIN))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("rotary_scaling/qwen2_float16", allowed=STATE, cause=("inv_freq", "rope", "rotary", "attention_scaling"))
def rotary_scaling_qwen2() -> PairModels:
    """YaRN without its attention factor: the frequencies are right and the scale of cosines is missing."""
    reference = load("qwen2", torch.float16, rope_parameters=YARN)
    return edited(reference, padded("left"), lambda model: setattr(model.model.rotary_emb, "attention_scaling", 1.0))


@harmful("cast_after_load/gemma3_bfloat16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_gemma3() -> PairModels:
    """.to(bfloat16) rounds the frequencies of both kinds of layer, dtype= does not."""
    candidate = load("gemma3", torch.float32).to(torch.bfloat16)
    return PairModels(reference=load("gemma3", torch.bfloat16), candidate=candidate, inputs=padded("left"))


@harmful("layer_types/gemma3_float32", allowed=STATE, cause=("inv_freq", "rope", "rotary"))
def layer_types_gemma3() -> PairModels:
    """The global rope base in local layers too, as a port with one table for both."""

    def edit(model: Any) -> None:
        rotary = model.model.rotary_emb
        rotary.sliding_attention_inv_freq.copy_(rotary.full_attention_inv_freq)

    return edited(load("gemma3"), padded("left"), edit)


@harmful("softcap_dropped/gemma2_bfloat16", allowed=SEMANTIC, cause=("softcap", "lm_head", "logits"))
def softcap_dropped_gemma2() -> PairModels:
    """Logits that are not capped."""
    return edited(
        load("gemma2", torch.bfloat16),
        padded("left"),
        lambda model: setattr(model.config, "final_logit_softcapping", None),
    )


@harmful("softcap_dropped/gemma2_sdpa_float32", allowed=SEMANTIC, cause=("softcap", "sdpa", "attn_implementation"))
def softcap_dropped_in_attention_gemma2() -> PairModels:
    """eager against sdpa, which has no cap: what Gemma 2 was warned of when it came out."""
    reference, candidate = load("gemma2"), load("gemma2", attention="sdpa")
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("scale_dropped/gemma_float16", allowed=STATE, cause=("embed",))
def embedding_scale_gemma() -> PairModels:
    """Embeddings that are not multiplied by the square root of the hidden size."""

    def edit(model: Any) -> None:
        set_class(model.model.embed_tokens, nn.Embedding)

    return edited(load("gemma", torch.float16), padded("left"), edit)


@harmful("epsilon/qwen2_float32", allowed=SEMANTIC, cause=("eps", "norm"))
def epsilon_qwen2() -> PairModels:
    """rms_norm_eps 1e-5 for 1e-6."""
    reference, candidate = load("qwen2"), load("qwen2", rms_norm_eps=1e-5)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("norm_offset/gemma_float16", allowed=SEMANTIC, cause=("norm",))
def norm_offset_gemma() -> PairModels:
    """The last norm scales by w where 1 + w was trained: Gemma run by Llama's code."""
    return edited(
        load("gemma", torch.float16), padded("left"), lambda model: set_class(model.model.norm, parts.NormWithoutOffset)
    )


@harmful("parallel_residual/gptneox_float32", allowed=SEMANTIC, cause=("residual", "layer"))
def parallel_residual_gptneox() -> PairModels:
    """Attention and MLP one after the other where they were trained beside each other."""
    reference, candidate = load("gptneox"), load("gptneox", use_parallel_residual=False)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


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


@harmful("pooling/qwen2_float32", allowed=SEMANTIC, cause=("pool", "last_by_count", "last_column"))
def pooling_qwen2() -> PairModels:
    """The last column of right-padded texts, which is a pad (embedding models served without left padding)."""
    model = load("qwen2")
    candidate = Pooled(deepcopy(model), last_column)
    return PairModels(reference=Pooled(model, last_by_count), candidate=candidate, inputs=padded("right"))


@harmful("angles_in_half/llama_bfloat16", allowed=STATE, cause=("rotary", "halfangles", "position"))
def angles_in_half_llama() -> PairModels:
    """Angles in bfloat16 from position 1000 on, where four positions are one (transformers#29285)."""
    return edited(
        load("llama", torch.bfloat16), far(1000), lambda model: set_class(model.model.rotary_emb, parts.HalfAngles)
    )


@harmful("angles_in_half/qwen2_float16", allowed=STATE, cause=("rotary", "halfangles", "position"))
def angles_in_half_qwen2() -> PairModels:
    """Angles in float16 from position 6000 on, where four positions are one."""
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


@harmful("norm_in_half/qwen3_float16", allowed=SEMANTIC, cause=("norm",))
def norm_in_half_qwen3() -> PairModels:
    """The last norm without its upcast, over embeddings whose squares float16 cannot hold."""
    reference = load("qwen3", torch.float16)
    with torch.no_grad():
        reference.model.embed_tokens.weight *= 3000
    return edited(reference, padded("left"), lambda model: set_class(model.model.norm, parts.NativeNorm))


@harmful("not_finite/qwen2_bfloat16", allowed=SEMANTIC, cause=("mask", "nan", "self_attn", "attention", "finite"))
def not_a_number_qwen2() -> PairModels:
    """Pads on the left masked with minus infinity: rows of nothing, which the next layer spreads (transformers#31035)."""
    return edited(
        load("qwen2", torch.bfloat16),
        padded("left", positions=False),
        lambda model: set_class(model.model.layers[0].self_attn, parts.InfiniteMaskAttention),
    )


@harmful("second_output/llama_float32", allowed=SEMANTIC, cause=("hidden_states", "hiddenstates"))
def second_output_llama() -> PairModels:
    """The logits are right; each of the hidden states is the one before."""
    model = load("llama")
    inputs = padded("right") | {"output_hidden_states": True}
    candidate = parts.EarlierHiddenStates(deepcopy(model))
    return PairModels(reference=parts.HiddenStates(model), candidate=candidate, inputs=inputs)


@harmful("quantised_weight/qwen3_bfloat16", allowed=STATE, cause=("down_proj",))
def quantised_weight_qwen3() -> PairModels:
    """One down projection went through float8 and back, which nobody asked for."""

    def edit(model: Any) -> None:
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.copy_(weight.to(torch.float8_e4m3fn).to(weight.dtype))

    return edited(load("qwen3", torch.bfloat16), padded("left"), edit)


@harmful("cache_position/llama_float32", allowed=SEMANTIC, cause=("position", "decoded"))
def cache_position_llama() -> PairModels:
    """Positions that start again at 0 behind the prompt."""
    model = load("llama")
    candidate = parts.Decoded(deepcopy(model), 6, lambda column: column - 6)
    return PairModels(reference=parts.Decoded(model, 6), candidate=candidate, inputs=one_length())


@harmful("norm_skipped/qwen3_bfloat16", allowed=SEMANTIC, cause=("norm",))
def norm_skipped_qwen3() -> PairModels:
    """No last norm before the head."""
    return edited(
        load("qwen3", torch.bfloat16), padded("left"), lambda model: setattr(model.model, "norm", nn.Identity())
    )


@harmful("skip_dropped/llama_bfloat16", allowed=SEMANTIC, cause=("layers.1", "residual"))
def skip_dropped_llama() -> PairModels:
    """The second layer's attention is added to nothing."""
    return edited(
        load("llama", torch.bfloat16),
        padded("left"),
        lambda model: set_class(model.model.layers[1], NoAttentionResidual),
    )


@harmful("input_written/llama_float32", allowed=STATE, cause=("o_proj",))
def input_written_llama() -> PairModels:
    """Both sides scale their input in place, so that a second run sees another one; one row of a weight differs."""
    reference = load("llama")

    def edit(model: Any) -> None:
        model.model.model.layers[1].self_attn.o_proj.weight[3].mul_(1.5)

    return edited(parts.ScalesItsInput(reference, 0.5), embedded(reference, padded("left")), edit)


@harmful("second_call/gemma_float32", allowed=STATE, cause=("embed_tokens",))
def second_call_gemma() -> PairModels:
    """One row of the embedding was edited, and only the second of two calls reads it."""
    first, second = one_length(), without(padded("left"), "position_ids")
    fresh = sorted(set(second["input_ids"].unique().tolist()) - set(first["input_ids"].unique().tolist()) - {0})

    def edit(model: Any) -> None:
        model.model.embed_tokens.weight[fresh[0]] *= 1.5

    return edited(load("gemma"), [first, second], edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
