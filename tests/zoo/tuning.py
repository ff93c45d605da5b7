"""The half of the zoo that may be looked at while thresholds are chosen."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.zoo import plain
from tests.zoo.models import (
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
    OffsetNorm,
    Pooled,
    Reordered,
    RotaryTable,
    ScaledEmbedding,
    Softcap,
    Under,
    mean_of_all,
    mean_of_real,
)


@harmless("same_twice/llama_bfloat16", allowed=IDENTICAL)
def same_twice_llama() -> PairModels:
    """One folder loaded twice."""
    reference, candidate = (load("llama", torch.bfloat16) for _ in range(2))
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmless("device_map/llama_bfloat16", allowed=IDENTICAL)
def device_map_llama() -> PairModels:
    """device_map= against dtype= alone: the same bits."""
    reference, candidate = load("llama", torch.bfloat16), load("llama", torch.bfloat16, device_map="cpu")
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmless("dtype_exact_weights/llama_bfloat16")
def dtype_exact_weights_llama() -> PairModels:
    """Weights saved in bfloat16, computed in float32 and in bfloat16."""
    dtypes = (torch.float32, torch.bfloat16)
    reference, candidate = (load("llama", dtype, saved_dtype=torch.bfloat16) for dtype in dtypes)
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmless("dtype_rounded_weights/llama_bfloat16")
def dtype_rounded_weights_llama() -> PairModels:
    """Expected to be among the hardest: weights saved in float32, so that asking for bfloat16 rounds them as well."""
    reference, candidate = (load("llama", dtype) for dtype in (torch.float32, torch.bfloat16))
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmless("double/llama_float32")
def double_llama() -> PairModels:
    """float64 against float32; transformers' norms and tables stay in float32 on both sides."""
    reference, candidate = (load("llama", dtype) for dtype in (torch.float64, torch.float32))
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmless("attention_backend/bert_float16")
def attention_backend_bert() -> PairModels:
    """eager against sdpa."""
    return edited(load("bert", torch.float16), padded(), lambda model: model.set_attn_implementation("sdpa"))


@harmless("attention_backend/qwen3_bfloat16")
def attention_backend_loaded_qwen3() -> PairModels:
    """eager against sdpa, both from the folder."""
    reference, candidate = (load("qwen3", torch.bfloat16, backend) for backend in ("eager", "sdpa"))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmless("sdpa_kernel/qwen3_float32")
def sdpa_kernel_qwen3() -> PairModels:
    """sdpa's own choice of kernel against its math kernel."""
    model = load("qwen3", torch.float32, "sdpa")
    return PairModels(
        reference=Under(model, nullcontext),
        candidate=Under(deepcopy(model), partial(sdpa_kernel, SDPBackend.MATH)),
        inputs=one_length(),
    )


@harmless("flag/conv_float32")
def flag_conv() -> PairModels:
    """Convolutions with oneDNN and without."""
    model = plain.seeded(plain.ConvNet)
    return PairModels(
        reference=Under(model, nullcontext),
        candidate=Under(deepcopy(model), partial(torch.backends.mkldnn.flags, enabled=False)),
        inputs=plain.images(),
    )


@harmless("one_by_one/bert_float32")
def one_by_one_bert() -> PairModels:
    """A padded batch against each text alone."""
    model = load("bert", torch.float32)
    return PairModels(reference=Chunked(model, rows=3), candidate=Chunked(deepcopy(model), rows=1), inputs=padded())


@harmless("pad_amount/qwen3_float16")
def pad_amount_qwen3() -> PairModels:
    """Left padding to 11 columns and to 19, explicit positions."""
    model = load("qwen3", torch.float16, "sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=padded("left", columns=19)
    )


@harmless("pad_side/llama_float32")
def pad_side_llama() -> PairModels:
    """Right against left padding, explicit positions."""
    model = load("llama", torch.float32, "sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("right"), candidate_inputs=padded("left")
    )


@harmless("packing/llama_float32")
def packing_llama() -> PairModels:
    """Padded against packed, explicit positions, no cache."""
    model = load("llama", torch.float32, "sdpa")
    return PairModels(reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=packed())


@harmless("implicit_positions/llama_bfloat16")
def implicit_positions_llama() -> PairModels:
    """Left padding with positions that count the pads: RoPE is relative, so this is exact in theory."""
    model, inputs = load("llama", torch.bfloat16), padded("left", columns=16)
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=without(inputs, "position_ids")
    )


@harmless("pads_only/llama_float32")
def pads_only_llama() -> PairModels:
    """A causal model that ignores the mask of right padding: only pad rows change."""
    inputs = padded("right", positions=False)
    return edited(load("llama", torch.float32), inputs, lambda model: set_class(model, MaskIgnored))


@harmless("reduction_order/mlp_float32")
def reduction_order_mlp() -> PairModels:
    """A linear layer as the sum of two halves."""
    return edited(
        plain.seeded(plain.Mlp),
        plain.hidden(),
        lambda model: setattr(model.blocks[0], "up", plain.SplitLinear(model.blocks[0].up)),
    )


@harmless("fused_qkv/block_float32")
def fused_qkv_block() -> PairModels:
    """One projection for query, key and value against three."""
    separate = plain.seeded(plain.Attention)
    return PairModels(reference=separate, candidate=plain.FusedAttention(separate).eval(), inputs=plain.hidden())


@harmless("permuted_batch/llama_bfloat16")
def permuted_batch_llama() -> PairModels:
    """The rows of a batch in another order, put back at the end: inside, the rows do not line up."""
    model = load("llama", torch.bfloat16)
    candidate = Reordered(deepcopy(model), (2, 0, 1))
    return PairModels(reference=Reordered(model, (0, 1, 2)), candidate=candidate, inputs=padded())


@harmless("rewrite/block_bfloat16", allowed=IDENTICAL)
def rewrite_scale_block() -> PairModels:
    """x * 0.5 against x / 2: the same number."""
    return edited(
        plain.seeded(plain.HalvedScores, torch.bfloat16),
        plain.hidden(torch.bfloat16),
        lambda model: set_class(model, plain.ScoresOverTwo),
    )


@harmless("router/moe_bfloat16")
def router_dtype_moe() -> PairModels:
    """Expected to be among the hardest: bfloat16 flips the choice of expert of some tokens, which is not small."""
    reference, candidate = (plain.seeded(plain.Moe, dtype) for dtype in (torch.float32, torch.bfloat16))
    return PairModels(
        reference=reference,
        candidate=candidate,
        inputs=plain.hidden(columns=100),
        candidate_inputs=plain.hidden(torch.bfloat16, columns=100),
    )


@harmless("equal_head/llama_bfloat16", allowed=IDENTICAL)
def equal_head_llama() -> PairModels:
    """A tied head against an untied one with the same values."""
    return edited(load("llama", torch.bfloat16, tied=True), padded(), untie)


@harmless("heads_reordered/bert_float32")
def heads_reordered_bert() -> PairModels:
    """Two heads swapped in every projection of one layer: other weights, the same function."""

    def edit(model: Any) -> None:
        attention = model.encoder.layer[0].attention
        for projection in (attention.self.query, attention.self.key, attention.self.value):
            swap_blocks(projection.weight, 0, 2)
            swap_blocks(projection.bias, 0, 2)
        swap_blocks(attention.output.dense.weight, 0, 2, dim=1)

    return edited(load("bert", torch.float32), padded(), edit)


@harmful("cast_after_load/llama_bfloat16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_llama() -> PairModels:
    """Expected to be among the hardest. As report 1: .to(bfloat16) rounds inv_freq, dtype= does not."""
    candidate = load("llama", torch.float32).to(torch.bfloat16)
    return PairModels(reference=load("llama", torch.bfloat16), candidate=candidate, inputs=padded())


@harmful("cast_across_dtypes/qwen3_bfloat16", allowed=POLICY, cause=("inv_freq",))
def cast_across_dtypes_qwen3() -> PairModels:
    """Expected to be among the hardest: float32 against .to(bfloat16), so that the table hides behind the dtype."""
    reference = load("qwen3", torch.float32, saved_dtype=torch.bfloat16)
    return PairModels(reference=reference, candidate=deepcopy(reference).to(torch.bfloat16), inputs=padded("left"))


@harmful("rotary_table/llama_float32", allowed=POLICY, cause=("cos", "sin"))
def rotary_table_llama() -> PairModels:
    """The whole table of cosines and sines in float16, in a float32 model."""
    reference = load("llama", torch.float32)
    reference.model.rotary_emb = RotaryTable(reference.model.rotary_emb)
    return edited(reference, padded(), lambda model: model.model.rotary_emb.half())


@harmful("rope_base/qwen3_float32", allowed=STATE, cause=("inv_freq", "rope_theta", "rotary"))
def rope_base_qwen3() -> PairModels:
    """rope_theta 1000000 for 10000."""
    rope = {"rope_type": "default", "rope_theta": 1e6}
    reference, candidate = load("qwen3", torch.float32), load("qwen3", torch.float32, rope_parameters=rope)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"))


@harmful("epsilon/bert_float16", allowed=SEMANTIC, cause=("eps", "norm"))
def epsilon_bert() -> PairModels:
    """Expected to be among the hardest: layer_norm_eps 1e-5 for 1e-12."""
    reference, candidate = load("bert", torch.float16), load("bert", torch.float16, layer_norm_eps=1e-5)
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("epsilon/mlp_bfloat16", allowed=SEMANTIC, cause=("eps", "norm"))
def epsilon_mlp() -> PairModels:
    """Expected to be among the hardest: one of two layer norms has 1e-3 for 1e-5."""
    return edited(
        plain.seeded(plain.Mlp, torch.bfloat16),
        plain.hidden(torch.bfloat16),
        lambda model: setattr(model.blocks[1].norm, "eps", 1e-3),
    )


@harmful("pads_attended/llama_float32", allowed=SEMANTIC, cause=("mask",))
def pads_attended_llama() -> PairModels:
    """A model that ignores the mask of left padding; given positions, transformers would take pads for packed texts."""
    inputs = padded("left", positions=False)
    return edited(load("llama", torch.float32), inputs, lambda model: set_class(model, MaskIgnored))


@harmful("causality/bert_float32", allowed=SEMANTIC, cause=("mask", "causal", "is_decoder"))
def causality_bert() -> PairModels:
    """A bidirectional encoder under a causal mask."""
    reference, candidate = load("bert", torch.float32), load("bert", torch.float32, is_decoder=True)
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("positions/bert_float16", allowed=SEMANTIC, cause=("position",))
def positions_bert() -> PairModels:
    """Absolute positions that start at 1."""
    model, inputs = load("bert", torch.float16), padded()
    shifted = inputs | {"position_ids": inputs["position_ids"] + 1}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=shifted)


@harmful("left_padded_absolute/bert_bfloat16", allowed=SEMANTIC, cause=("position",))
def left_padded_absolute_bert() -> PairModels:
    """Left padding of a model with absolute positions, which count the pads."""
    model = load("bert", torch.bfloat16)
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded("right", positions=False),
        candidate_inputs=padded("left", columns=14, positions=False),
    )


@harmful("swapped_heads/qwen3_float16", allowed=STATE, cause=("v_proj",))
def swapped_heads_qwen3() -> PairModels:
    """The two value heads swapped."""
    return edited(
        load("qwen3", torch.float16, "sdpa"),
        packed(),
        lambda model: swap_blocks(model.model.layers[0].self_attn.v_proj.weight, 0, 1),
    )


@harmful("transposed_weight/llama_float16", allowed=STATE, cause=("o_proj",))
def transposed_weight_llama() -> PairModels:
    """A square o_proj transposed."""

    def edit(model: Any) -> None:
        weight = model.model.layers[2].self_attn.o_proj.weight
        weight.copy_(weight.T.clone())

    return edited(load("llama", torch.float16), padded(), edit)


@harmful("head_drifted/qwen3_float32", allowed=STATE, cause=("lm_head",))
def head_drifted_qwen3() -> PairModels:
    """A tied head against an untied one that was never loaded."""

    def edit(model: Any) -> None:
        untie(model)
        model.lm_head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(6))

    return edited(load("qwen3", torch.float32, tied=True), padded("left"), edit)


@harmful("missing_scale/block_float32", allowed=SEMANTIC, cause=("scal", "attention", "softmax", "score"))
def missing_scale_block() -> PairModels:
    """Attention without 1 / sqrt(head_dim)."""
    return edited(plain.seeded(plain.Attention), plain.hidden(), lambda model: setattr(model, "scale", 1.0))


@harmful("corrupted_weight/llama_bfloat16", allowed=STATE, cause=("down_proj",))
def corrupted_weight_llama() -> PairModels:
    """Expected to be among the hardest: one element of one matrix has lost its sign."""
    return edited(
        load("llama", torch.bfloat16), padded(), lambda model: model.model.layers[1].mlp.down_proj.weight[5, 7].neg_()
    )


@harmful("corrupted_weight/conv_float32", allowed=STATE, cause=("conv",))
def corrupted_weight_conv() -> PairModels:
    """One element of one kernel has the exponent of its neighbour: it is doubled."""
    return edited(plain.seeded(plain.ConvNet), plain.images(), lambda model: model.conv.weight[3, 4, 1, 1].mul_(2))


@harmful("pooling/bert_bfloat16", allowed=SEMANTIC, cause=("pool",))
def pooling_bert() -> PairModels:
    """The mean over pads too."""
    model = load("bert", torch.bfloat16)
    candidate = Pooled(deepcopy(model), mean_of_all)
    return PairModels(reference=Pooled(model, mean_of_real), candidate=candidate, inputs=padded())


@harmful("dropout/llama_bfloat16", allowed=STATE, cause=("dropout", "train"))
def dropout_llama() -> PairModels:
    """Attention dropout of 0.1 in training mode."""
    return edited(load("llama", torch.bfloat16, attention_dropout=0.1), padded(), lambda model: model.train())


@harmful("cache_leak/llama_float32", allowed=SEMANTIC, cause=("cache",))
def cache_leak_llama() -> PairModels:
    """Padded against packed with the cache on."""
    reference, candidate = load("llama", torch.float32, "sdpa"), load("llama", torch.float32, "sdpa", use_cache=True)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("left"), candidate_inputs=packed())


@harmful("mask_leak/qwen3_float16", allowed=SEMANTIC, cause=("mask",))
def mask_leak_qwen3() -> PairModels:
    """Padded against packed with a mask of ones."""
    model = load("qwen3", torch.float16, "sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=packed(mask=True)
    )


@harmful("packed_implicit/qwen3_float32", allowed=SEMANTIC, cause=("position",))
def packed_implicit_qwen3() -> PairModels:
    """Padded against packed without positions."""
    model = load("qwen3", torch.float32, "sdpa")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=padded("left"), candidate_inputs=packed(positions=False)
    )


@harmful("dropped_residual/mlp_float32", allowed=SEMANTIC, cause=("blocks.1", "residual"))
def dropped_residual_mlp() -> PairModels:
    """One block without its residual."""
    return edited(
        plain.seeded(plain.Mlp),
        plain.hidden(),
        lambda model: set_class(model.blocks[1], plain.MlpBlockWithoutResidual),
    )


@harmful("softcap/block_bfloat16", allowed=SEMANTIC, cause=("softcap",))
def softcap_block() -> PairModels:
    """Expected to be among the hardest: attention scores bounded at 50 by the candidate, where they stay below 10."""
    return edited(
        plain.seeded(plain.Attention, torch.bfloat16),
        plain.hidden(torch.bfloat16),
        lambda model: setattr(model, "softcap", Softcap(50.0)),
    )


@harmful("activation/bert_bfloat16", allowed=SEMANTIC, cause=("act", "gelu", "intermediate"))
def activation_bert() -> PairModels:
    """Expected to be among the hardest: gelu by tanh for gelu, less than bfloat16 resolves."""
    reference, candidate = load("bert", torch.bfloat16), load("bert", torch.bfloat16, hidden_act="gelu_pytorch_tanh")
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("activation/mlp_float16", allowed=SEMANTIC, cause=("activation", "gelu"))
def activation_mlp() -> PairModels:
    """Expected to be among the hardest: gelu by tanh for gelu in one of two blocks."""
    return edited(
        plain.seeded(plain.Mlp, torch.float16),
        plain.hidden(torch.float16),
        lambda model: setattr(model.blocks[0], "activation", nn.GELU(approximate="tanh")),
    )


@harmful("kv_repeat/block_bfloat16", allowed=SEMANTIC, cause=("attention", "tiledheads", "kernel", "head", "forward"))
def kv_repeat_across_dtypes_block() -> PairModels:
    """Key-value heads tiled 0 1 0 1 instead of 0 0 1 1, in bfloat16 against float32."""
    return PairModels(
        reference=plain.seeded(plain.Attention),
        candidate=plain.seeded(plain.TiledHeads, torch.bfloat16),
        inputs=plain.hidden(),
        candidate_inputs=plain.hidden(torch.bfloat16),
    )


@harmful("skipped_layer/llama_bfloat16", allowed=SEMANTIC, cause=("layer",))
def skipped_layer_llama() -> PairModels:
    """The last layer is not there."""
    return edited(load("llama", torch.bfloat16), padded(), lambda model: model.model.layers.pop(2))


@harmful("norm_offset/llama_bfloat16", allowed=SEMANTIC, cause=("norm",))
def norm_offset_llama() -> PairModels:
    """The last norm scales by 1 + w."""
    return edited(load("llama", torch.bfloat16), padded(), lambda model: set_class(model.model.norm, OffsetNorm))


@harmful("embedding_scale/qwen3_bfloat16", allowed=SEMANTIC, cause=("embed",))
def embedding_scale_qwen3() -> PairModels:
    """Embeddings multiplied by sqrt(D) by the candidate and not by the reference."""
    model = load("qwen3", torch.bfloat16, "sdpa")
    return edited(model, padded("left"), lambda model: set_class(model.model.embed_tokens, ScaledEmbedding))


@harmful("unmerged_adapter/llama_bfloat16", allowed=STATE, cause=("q_proj",))
def unmerged_adapter_llama() -> PairModels:
    """A low-rank delta merged into one matrix of the reference is missing from the candidate."""
    candidate = load("llama", torch.bfloat16)
    reference = deepcopy(candidate)
    with torch.no_grad():
        add_low_rank(reference.model.layers[0].self_attn.q_proj.weight, scale=0.01)
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


@harmful("quantised_weight/conv_float32", allowed=STATE, cause=("conv",))
def quantised_weight_conv() -> PairModels:
    """One kernel went through int8 and back."""
    return edited(plain.seeded(plain.ConvNet), plain.images(), lambda model: int8_round_trip(model.conv.weight))


@harmful("missing_qk_norm/qwen3_bfloat16", allowed=SEMANTIC, cause=("q_norm",))
def missing_q_norm_qwen3() -> PairModels:
    """One layer's query norm is not there."""
    return edited(
        load("qwen3", torch.bfloat16),
        padded("left"),
        lambda model: setattr(model.model.layers[0].self_attn, "q_norm", nn.Identity()),
    )


@harmful("rope_layout/qwen3_float32", allowed=STATE, cause=("q_proj", "k_proj"))
def rope_layout_qwen3() -> PairModels:
    """The rows of q_proj alone are interleaved."""
    return edited(
        load("qwen3", torch.float32),
        packed(),
        lambda model: interleave_rotary_rows(model.model.layers[1].self_attn.q_proj.weight),
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
