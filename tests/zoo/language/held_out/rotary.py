"""Pairs of decoders with rotary positions: Llama, Qwen 2 and 3, Gemma 1 to 3, GPT-NeoX."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts, wrappers
from tests.zoo.language.models import embedded, far, load
from tests.zoo.models import one_length, packed, padded, set_class
from tests.zoo.pairs import IDENTICAL, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless
from tests.zoo.parts import Pooled, Reordered, last_by_count, last_column

YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 32}


@harmless("dtype/gemma2_bfloat16")
def dtype_gemma2() -> PairModels:
    """Weights saved in bfloat16 loaded in float32 and in bfloat16; windows, caps and norms of 1 + w."""
    reference, candidate = (
        load("gemma2", dtype, saved_dtype=torch.bfloat16) for dtype in (torch.float32, torch.bfloat16)
    )
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


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


@harmless("fused_projection/llama_float32")
def fused_projection_llama() -> PairModels:
    """Gate and up as one matrix in every layer, as vLLM and MLX load them."""

    def edit(model: Any) -> None:
        for layer in model.model.layers:
            set_class(layer.mlp, parts.FusedMlp)
            layer.mlp.fuse()

    return edited(load("llama"), padded("left"), edit)


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
        torch.manual_seed(0)
        model.resize_token_embeddings(pad_to_multiple_of=64, mean_resizing=False)

    return edited(load("qwen2"), padded("left"), edit)


@harmless("folded_norm/qwen2_float32")
def folded_norm_qwen2() -> PairModels:
    """The weight of a norm multiplied into the three projections behind it."""

    def edit(model: Any) -> None:
        layer = model.model.layers[1]
        for projection in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            projection.weight *= layer.input_layernorm.weight
        layer.input_layernorm.weight.fill_(1.0)

    return edited(load("qwen2"), padded("left"), edit)


@harmless("several_calls/qwen3_float16", allowed=IDENTICAL)
def several_calls_qwen3() -> PairModels:
    """Two calls, padded and packed, to a copy."""
    model = load("qwen3", torch.float16)
    return PairModels(reference=model, candidate=deepcopy(model), inputs=[padded("left"), packed()])


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


@harmful("rotary_layout/gptneox_bfloat16", allowed=SEMANTIC, cause=("rotary", "interleaved"))
def rotary_layout_gptneox() -> PairModels:
    """The table is laid out in pairs and the queries are rotated in halves: GPT-J's table in GPT-NeoX."""

    def edit(model: Any) -> None:
        model.gpt_neox.rotary_emb = parts.InterleavedTable(model.gpt_neox.rotary_emb)

    return edited(load("gptneox", torch.bfloat16), padded("right", positions=False), edit)


@harmful("rotary_scaling/qwen2_float16", allowed=STATE, cause=("inv_freq", "rope", "rotary", "attention_scaling"))
def rotary_scaling_qwen2() -> PairModels:
    """YaRN without its attention factor: frequencies are right, the scale of cosines is missing (vllm#46280)."""
    reference = load("qwen2", torch.float16, rope_parameters=YARN)
    return edited(reference, padded("left"), lambda model: setattr(model.model.rotary_emb, "attention_scaling", 1.0))


@harmful("layer_types/gemma3_float32", allowed=STATE, cause=("inv_freq", "rope", "rotary"))
def layer_types_gemma3() -> PairModels:
    """The global rope base in local layers too, as a port with one table for both."""

    def edit(model: Any) -> None:
        rotary = model.model.rotary_emb
        rotary.sliding_attention_inv_freq.copy_(rotary.full_attention_inv_freq)

    return edited(load("gemma3"), padded("left"), edit)


@harmful("softcap_dropped/gemma2_sdpa_float32", allowed=SEMANTIC, cause=("softcap", "sdpa", "attn_implementation"))
def softcap_dropped_in_attention_gemma2() -> PairModels:
    """eager against sdpa, which has no cap (vllm-metal#665)."""
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


@harmful("norm_in_half/qwen3_float16", allowed=SEMANTIC, cause=("norm",))
def norm_in_half_qwen3() -> PairModels:
    """The last norm without its upcast, over embeddings whose squares float16 cannot hold."""
    reference = load("qwen3", torch.float16)
    with torch.no_grad():
        reference.model.embed_tokens.weight *= 3000
    return edited(reference, padded("left"), lambda model: set_class(model.model.norm, parts.NativeNorm))


@harmful("not_finite/qwen2_bfloat16", allowed=SEMANTIC, cause=("mask", "nan", "self_attn", "attention", "finite"))
def not_a_number_qwen2() -> PairModels:
    """Pads on the left masked with minus infinity: rows of nothing, which the next layer spreads (pytorch#103749)."""
    return edited(
        load("qwen2", torch.bfloat16),
        padded("left", positions=False),
        lambda model: set_class(model.model.layers[0].self_attn, parts.InfiniteMaskAttention),
    )


@harmful("quantised_weight/qwen3_bfloat16", allowed=STATE, cause=("down_proj",))
def quantised_weight_qwen3() -> PairModels:
    """One down projection went through float8 and back, which nobody asked for."""

    def edit(model: Any) -> None:
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.copy_(weight.to(torch.float8_e4m3fn).to(weight.dtype))

    return edited(load("qwen3", torch.bfloat16), padded("left"), edit)


@harmful("norm_skipped/qwen3_bfloat16", allowed=SEMANTIC, cause=("norm",))
def norm_skipped_qwen3() -> PairModels:
    """No last norm before the head."""
    return edited(
        load("qwen3", torch.bfloat16), padded("left"), lambda model: setattr(model.model, "norm", nn.Identity())
    )


@harmful("input_written/llama_float32", allowed=STATE, cause=("o_proj",))
def input_written_llama() -> PairModels:
    """Both sides scale their input in place, so that a second run sees another one; one row of a weight differs."""
    reference = load("llama")

    def edit(model: Any) -> None:
        model.model.model.layers[1].self_attn.o_proj.weight[3].mul_(1.5)

    return edited(wrappers.ScalesItsInput(reference, 0.5), embedded(reference, padded("left")), edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
