"""The half of the zoo that is kept aside while thresholds are chosen: only counts of it may be looked at."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo import plain
from tests.zoo.models import (
    HEAD_DIM,
    add_low_rank,
    int8_round_trip,
    interleave_rotary_rows,
    load,
    one_length,
    packed,
    padded,
    set_class,
    swap_blocks,
    untie,
    without,
)
from tests.zoo.pairs import IDENTICAL, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless
from tests.zoo.parts import (
    Chunked,
    MaskIgnored,
    NoAttentionResidual,
    Pooled,
    Reordered,
    RotaryTable,
    ScaledEmbedding,
    SkippedLayer,
    Softcap,
    Under,
    last_by_count,
    last_column,
)


@harmless("same_twice/bert_float32", allowed=IDENTICAL)
def same_twice_bert() -> PairModels:
    """A deep copy."""
    return edited(load("bert", torch.float32), padded(), lambda model: None)


@harmless("device_map/qwen3_float16", allowed=IDENTICAL)
def device_map_qwen3() -> PairModels:
    """device_map= against dtype= alone, packed."""
    reference, candidate = load("qwen3", torch.float16), load("qwen3", torch.float16, device_map="cpu")
    return PairModels(reference=reference, candidate=candidate, inputs=packed())


@harmless("dtype_exact_weights/qwen3_float16")
def dtype_exact_weights_qwen3() -> PairModels:
    """Weights saved in float16, computed in float32 and in float16, packed."""
    dtypes = (torch.float32, torch.float16)
    reference, candidate = (load("qwen3", dtype, saved_dtype=torch.float16) for dtype in dtypes)
    return PairModels(reference=reference, candidate=candidate, inputs=packed())


@harmless("dtype_rounded_weights/bert_float16")
def dtype_rounded_weights_bert() -> PairModels:
    """Expected to be among the hardest: weights saved in float32, so that asking for float16 rounds them as well."""
    reference, candidate = (load("bert", dtype) for dtype in (torch.float32, torch.float16))
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmless("double/mlp_float32")
def double_mlp() -> PairModels:
    """float64 against float32."""
    reference, candidate = (plain.seeded(plain.Mlp, dtype) for dtype in (torch.float64, torch.float32))
    return PairModels(
        reference=reference,
        candidate=candidate,
        inputs=plain.hidden(torch.float64),
        candidate_inputs=plain.hidden(torch.float32),
    )


@harmless("attention_backend/llama_bfloat16")
def attention_backend_llama() -> PairModels:
    """eager against sdpa, switched without a reload."""
    return edited(load("llama", torch.bfloat16), padded("left"), lambda model: model.set_attn_implementation("sdpa"))


@harmless("attention_backend/qwen3_float32")
def attention_backend_qwen3() -> PairModels:
    """eager against sdpa, packed."""
    return edited(load("qwen3", torch.float32), packed(), lambda model: model.set_attn_implementation("sdpa"))


@harmless("sdpa_kernel/llama_bfloat16")
def sdpa_kernel_llama() -> PairModels:
    """sdpa's own choice of kernel against its math kernel."""
    model = load("llama", torch.bfloat16, "sdpa")
    return PairModels(
        reference=Under(model, nullcontext),
        candidate=Under(deepcopy(model), partial(sdpa_kernel, SDPBackend.MATH)),
        inputs=one_length(),
    )


@harmless("flag/llama_bfloat16")
def flag_llama() -> PairModels:
    """Matrix products in bfloat16 with oneDNN and without."""
    model = load("llama", torch.bfloat16)
    return PairModels(
        reference=Under(model, nullcontext),
        candidate=Under(deepcopy(model), partial(torch.backends.mkldnn.flags, enabled=False)),
        inputs=padded(),
    )


@harmless("one_by_one/llama_bfloat16")
def one_by_one_llama() -> PairModels:
    """A padded batch against each text alone; both keep explicit positions, pads give zeros."""
    model = load("llama", torch.bfloat16, "sdpa")
    return PairModels(reference=Chunked(model, rows=3), candidate=Chunked(deepcopy(model), rows=1), inputs=padded())


@harmless("pad_amount/bert_bfloat16")
def pad_amount_bert() -> PairModels:
    """Right padding to 11 columns and to 24."""
    model = load("bert", torch.bfloat16, "sdpa")
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded(positions=False),
        candidate_inputs=padded(columns=24, positions=False),
    )


@harmless("pad_side/bert_bfloat16")
def pad_side_bert() -> PairModels:
    """Right against left padding of a model with absolute positions, which are explicit."""
    model = load("bert", torch.bfloat16, "sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("right"), candidate_inputs=padded("left")
    )


@harmless("packing/qwen3_bfloat16")
def packing_qwen3() -> PairModels:
    """Padded against packed, explicit positions, no cache."""
    model = load("qwen3", torch.bfloat16, "sdpa")
    return PairModels(reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=packed())


@harmless("implicit_positions/qwen3_float16")
def implicit_positions_qwen3() -> PairModels:
    """The pair of report 2: packed with explicit positions against left-padded without any."""
    model = load("qwen3", torch.float16, "sdpa")
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=packed(),
        candidate_inputs=padded("left", columns=16, positions=False),
    )


@harmless("pads_only/llama_bfloat16")
def pads_only_sdpa_llama() -> PairModels:
    """A causal model that ignores the mask of right padding, so that sdpa may take another kernel."""
    model = load("llama", torch.bfloat16, "sdpa")
    return edited(model, padded("right", columns=14, positions=False), lambda model: set_class(model, MaskIgnored))


@harmless("reduction_order/llama_bfloat16")
def reduction_order_llama() -> PairModels:
    """The first down projection as the sum of two halves."""

    def edit(model: Any) -> None:
        first = model.model.layers[0].mlp
        first.down_proj.register_parameter("bias", None)
        first.down_proj = plain.SplitLinear(first.down_proj)

    return edited(load("llama", torch.bfloat16), padded(), edit)


@harmless("fused_qkv/block_float16")
def fused_qkv_half_block() -> PairModels:
    """One projection for query, key and value against three, in float16 against float32."""
    separate = plain.seeded(plain.Attention)
    return PairModels(
        reference=separate,
        candidate=plain.FusedAttention(separate).eval().half(),
        inputs=plain.hidden(),
        candidate_inputs=plain.hidden(torch.float16),
    )


@harmless("permuted_batch/conv_float32")
def permuted_batch_conv() -> PairModels:
    """The images of a batch in another order, put back at the end."""
    model = plain.seeded(plain.ConvNet)
    return PairModels(
        reference=Reordered(model, (0, 1, 2)), candidate=Reordered(deepcopy(model), (1, 2, 0)), inputs=plain.images()
    )


@harmless("rewrite/block_float32")
def rewrite_softmax_block() -> PairModels:
    """Softmax with and without subtracting the maximum."""
    return edited(
        plain.seeded(plain.Attention), plain.hidden(), lambda model: setattr(model, "softmax", plain.PlainSoftmax())
    )


@harmless("router/moe_float16")
def router_order_moe() -> PairModels:
    """Expected to be among the hardest: another order of summation before the router may flip the choice of expert."""
    return edited(
        plain.seeded(plain.Moe, torch.float16),
        plain.hidden(torch.float16, columns=200),
        lambda model: setattr(model, "mix", plain.SplitLinear(model.mix)),
    )


@harmless("equal_head/qwen3_float32", allowed=IDENTICAL)
def equal_head_qwen3() -> PairModels:
    """A tied head against an untied one with the same values, packed."""
    return edited(load("qwen3", torch.float32, tied=True), packed(), untie)


@harmless("heads_reordered/llama_bfloat16")
def heads_reordered_llama() -> PairModels:
    """Both groups of heads swapped in every projection of one layer: other weights, the same function."""

    def edit(model: Any) -> None:
        attention = model.model.layers[1].self_attn
        for first, second in ((0, 2), (1, 3)):
            swap_blocks(attention.q_proj.weight, first, second)
            swap_blocks(attention.o_proj.weight, first, second, dim=1)
        for projection in (attention.k_proj, attention.v_proj):
            swap_blocks(projection.weight, 0, 1)

    return edited(load("llama", torch.bfloat16), padded(), edit)


@harmful("cast_after_load/qwen3_float16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_qwen3() -> PairModels:
    """Expected to be among the hardest: .half() rounds inv_freq eight times less than bfloat16 does. Packed."""
    candidate = load("qwen3", torch.float32).half()
    return PairModels(reference=load("qwen3", torch.float16), candidate=candidate, inputs=packed())


@harmful("cast_across_dtypes/llama_bfloat16", allowed=POLICY, cause=("inv_freq",))
def cast_across_dtypes_llama() -> PairModels:
    """Expected to be the hardest: as its sibling, and the weights are rounded as well, which is what was asked for."""
    reference = load("llama", torch.float32)
    return PairModels(reference=reference, candidate=deepcopy(reference).to(torch.bfloat16), inputs=padded())


@harmful("rotary_table/qwen3_float16", allowed=POLICY, cause=("cos", "sin"))
def rotary_table_qwen3() -> PairModels:
    """The whole table of cosines and sines in bfloat16, in a float16 model."""
    reference = load("qwen3", torch.float16, "sdpa")
    reference.model.rotary_emb = RotaryTable(reference.model.rotary_emb)
    return edited(reference, packed(), lambda model: model.model.rotary_emb.bfloat16())


@harmful("rope_base/llama_bfloat16", allowed=STATE, cause=("inv_freq", "rope_theta", "rotary"))
def rope_base_llama() -> PairModels:
    """rope_theta 10500 for 10000, the base kept in float32."""
    rope = {"rope_type": "default", "rope_theta": 10500.0}
    reference, candidate = load("llama", torch.bfloat16), load("llama", torch.bfloat16, rope_parameters=rope)
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("epsilon/llama_bfloat16", allowed=SEMANTIC, cause=("eps", "norm"))
def epsilon_llama() -> PairModels:
    """Expected to be among the hardest: rms_norm_eps 1e-5 for 1e-6, less than bfloat16 resolves."""
    reference, candidate = load("llama", torch.bfloat16), load("llama", torch.bfloat16, rms_norm_eps=1e-5)
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("epsilon/qwen3_float32", allowed=SEMANTIC, cause=("eps", "norm"))
def epsilon_qwen3() -> PairModels:
    """rms_norm_eps 1e-5 for 1e-6 in float32."""
    reference, candidate = load("qwen3", torch.float32), load("qwen3", torch.float32, rms_norm_eps=1e-5)
    return PairModels(reference=reference, candidate=candidate, inputs=packed())


@harmful("pads_attended/bert_bfloat16", allowed=SEMANTIC, cause=("mask",))
def pads_attended_bert() -> PairModels:
    """A padded batch without its mask."""
    model, inputs = load("bert", torch.bfloat16), padded()
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=without(inputs, "attention_mask")
    )


@harmful("causality/llama_bfloat16", allowed=SEMANTIC, cause=("mask", "causal"))
def causality_llama() -> PairModels:
    """A causal model that sees the future in one layer."""
    return edited(
        load("llama", torch.bfloat16, "sdpa"),
        one_length(),
        lambda model: setattr(model.model.layers[1].self_attn, "is_causal", False),
    )


@harmful("positions/llama_bfloat16", allowed=SEMANTIC, cause=("position",))
def positions_llama() -> PairModels:
    """Positions off by one inside each text: 0 1 2 3 4 4 5 6: the distance over the doubled position is wrong."""
    model, inputs = load("llama", torch.bfloat16), padded()
    positions = inputs["position_ids"]
    doubled = inputs | {"position_ids": positions - (positions > 4).long()}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=doubled)


@harmful("left_padded_absolute/bert_float32", allowed=SEMANTIC, cause=("position",))
def left_padded_absolute_same_side_bert() -> PairModels:
    """The same left padding with explicit positions and without."""
    model, inputs = load("bert", torch.float32, "sdpa"), padded("left", columns=14)
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=without(inputs, "position_ids")
    )


@harmful("swapped_heads/llama_bfloat16", allowed=STATE, cause=("q_proj",))
def swapped_heads_llama() -> PairModels:
    """Two query heads swapped in q_proj alone."""
    return edited(
        load("llama", torch.bfloat16),
        padded(),
        lambda model: swap_blocks(model.model.layers[1].self_attn.q_proj.weight, 0, 3),
    )


@harmful("transposed_weight/mlp_float32", allowed=STATE, cause=("up",))
def transposed_weight_mlp() -> PairModels:
    """A square linear layer transposed."""

    def edit(model: Any) -> None:
        weight = model.blocks[0].up.weight
        weight.copy_(weight.T.clone())

    return edited(plain.seeded(plain.Mlp), plain.hidden(), edit)


@harmful("head_drifted/llama_bfloat16", allowed=STATE, cause=("lm_head",))
def head_drifted_llama() -> PairModels:
    """A tied head against an untied one that is the embedding of before a little training."""

    def edit(model: Any) -> None:
        untie(model)
        weight = model.lm_head.weight
        weight += 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(6)).to(weight.dtype)

    return edited(load("llama", torch.bfloat16, tied=True), padded(), edit)


@harmful("missing_scale/llama_bfloat16", allowed=SEMANTIC, cause=("scal", "self_attn"))
def missing_scale_llama() -> PairModels:
    """One layer scales its scores by 1 / head_dim."""
    return edited(
        load("llama", torch.bfloat16, "sdpa"),
        padded("left"),
        lambda model: setattr(model.model.layers[1].self_attn, "scaling", 1 / HEAD_DIM),
    )


@harmful("corrupted_weight/bert_float16", allowed=STATE, cause=("intermediate",))
def corrupted_weight_bert() -> PairModels:
    """One row of one matrix is zero."""
    return edited(
        load("bert", torch.float16),
        padded(),
        lambda model: model.encoder.layer[2].intermediate.dense.weight[17].zero_(),
    )


@harmful("corrupted_weight/qwen3_float32", allowed=STATE, cause=("k_norm",))
def corrupted_weight_qwen3() -> PairModels:
    """The weights of two norms were loaded into each other's place."""

    def edit(model: Any) -> None:
        attention = model.model.layers[1].self_attn
        attention.k_norm.weight.copy_(attention.q_norm.weight)

    return edited(load("qwen3", torch.float32), packed(), edit)


@harmful("pooling/llama_float32", allowed=SEMANTIC, cause=("pool",))
def pooling_llama() -> PairModels:
    """The last token by count under left padding."""
    model = load("llama", torch.float32).model
    return PairModels(
        reference=Pooled(model, last_column), candidate=Pooled(deepcopy(model), last_by_count), inputs=padded("left")
    )


@harmful("dropout/bert_float32", allowed=STATE, cause=("dropout", "train"))
def dropout_bert() -> PairModels:
    """The candidate was left in training mode; nobody asked for that flag, so policy is right as well."""
    return edited(load("bert", torch.float32), padded(), lambda model: model.train())


@harmful("cache_leak/qwen3_bfloat16", allowed=SEMANTIC, cause=("cache",))
def cache_leak_qwen3() -> PairModels:
    """Packed with the cache on: transformers stops looking for packing, and texts attend to those before them."""
    return edited(load("qwen3", torch.bfloat16), packed(), lambda model: setattr(model.config, "use_cache", True))


@harmful("mask_leak/llama_bfloat16", allowed=SEMANTIC, cause=("mask",))
def mask_leak_llama() -> PairModels:
    """Packed with a mask of ones."""
    model = load("llama", torch.bfloat16)
    return PairModels(reference=model, candidate=deepcopy(model), inputs=packed(), candidate_inputs=packed(mask=True))


@harmful("packed_implicit/llama_float16", allowed=SEMANTIC, cause=("position",))
def packed_implicit_llama() -> PairModels:
    """Packed without positions: one long text."""
    model = load("llama", torch.float16)
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=packed(), candidate_inputs=packed(positions=False)
    )


@harmful("dropped_residual/llama_bfloat16", allowed=SEMANTIC, cause=("layers.1", "residual"))
def dropped_residual_llama() -> PairModels:
    """One layer adds its attention to nothing."""
    return edited(
        load("llama", torch.bfloat16), padded(), lambda model: set_class(model.model.layers[1], NoAttentionResidual)
    )


@harmful("softcap/llama_float32", allowed=SEMANTIC, cause=("softcap", "lm_head"))
def softcap_llama() -> PairModels:
    """Logits bounded at 50 by the reference and not by the candidate."""
    reference = load("llama", torch.float32)
    reference.lm_head = nn.Sequential(OrderedDict(projection=reference.lm_head, softcap=Softcap(50.0)))
    return edited(reference, padded(), lambda model: setattr(model.lm_head, "softcap", nn.Identity()))


@harmful("activation/llama_float16", allowed=SEMANTIC, cause=("act", "gelu", "silu"))
def activation_llama() -> PairModels:
    """gelu for silu."""
    reference, candidate = load("llama", torch.float16), load("llama", torch.float16, hidden_act="gelu")
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("activation/qwen3_float32", allowed=SEMANTIC, cause=("act", "gelu"))
def activation_qwen3() -> PairModels:
    """gelu by tanh for gelu in float32."""
    reference, candidate = (load("qwen3", torch.float32, hidden_act=name) for name in ("gelu", "gelu_pytorch_tanh"))
    return PairModels(reference=reference, candidate=candidate, inputs=packed())


@harmful("kv_repeat/block_float32", allowed=SEMANTIC, cause=("attention", "tiledheads", "kernel", "head", "forward"))
def kv_repeat_block() -> PairModels:
    """Key-value heads tiled 0 1 0 1 instead of 0 0 1 1; the projections agree and the output projection's input not."""
    return edited(plain.seeded(plain.Attention), plain.hidden(), lambda model: set_class(model, plain.TiledHeads))


@harmful("skipped_layer/qwen3_float32", allowed=SEMANTIC, cause=("layers.1",))
def skipped_layer_qwen3() -> PairModels:
    """A layer hands its input on."""
    return edited(load("qwen3", torch.float32), packed(), lambda model: set_class(model.model.layers[1], SkippedLayer))


@harmful("norm_offset/llama_float32", allowed=STATE, cause=("norm",))
def norm_offset_state_llama() -> PairModels:
    """The weight of one norm was converted to be scaled by w - 1."""
    return edited(
        load("llama", torch.float32), padded(), lambda model: model.model.layers[0].input_layernorm.weight.sub_(1)
    )


@harmful("embedding_scale/llama_float32", allowed=SEMANTIC, cause=("embed",))
def embedding_scale_llama() -> PairModels:
    """Embeddings multiplied by sqrt(D) by the reference and not by the candidate."""
    reference = load("llama", torch.float32)
    set_class(reference.model.embed_tokens, ScaledEmbedding)
    return edited(reference, padded(), lambda model: set_class(model.model.embed_tokens, nn.Embedding))


@harmful("unmerged_adapter/mlp_float32", allowed=STATE, cause=("down",))
def unmerged_adapter_mlp() -> PairModels:
    """A very small low-rank delta was merged into the candidate."""
    return edited(
        plain.seeded(plain.Mlp), plain.hidden(), lambda model: add_low_rank(model.blocks[1].down.weight, scale=1e-4)
    )


@harmful("quantised_weight/llama_bfloat16", allowed=STATE, cause=("down_proj",))
def quantised_weight_llama() -> PairModels:
    """Expected to be among the hardest: one matrix went through int8 and back, which is rounding nobody asked for."""
    return edited(
        load("llama", torch.bfloat16),
        padded(),
        lambda model: int8_round_trip(model.model.layers[2].mlp.down_proj.weight),
    )


@harmful("missing_qk_norm/qwen3_float16", allowed=SEMANTIC, cause=("k_norm",))
def missing_k_norm_qwen3() -> PairModels:
    """One layer's key norm is not there."""
    return edited(
        load("qwen3", torch.float16, "sdpa"),
        packed(),
        lambda model: setattr(model.model.layers[2].self_attn, "k_norm", nn.Identity()),
    )


@harmful("rope_layout/llama_float16", allowed=STATE, cause=("q_proj", "k_proj"))
def rope_layout_llama() -> PairModels:
    """The rows of q_proj and k_proj of one layer are interleaved, as in Llama's own files: two changes at once."""

    def edit(model: Any) -> None:
        attention = model.model.layers[0].self_attn
        for weight in (attention.q_proj.weight, attention.k_proj.weight):
            interleave_rotary_rows(weight)

    return edited(load("llama", torch.float16), padded(), edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
