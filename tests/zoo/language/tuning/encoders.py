"""Pairs of encoders: BERT, ALBERT, RoBERTa, DistilBERT, ModernBERT."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from tests.zoo.language import parts, wrappers
from tests.zoo.language.edits import typed
from tests.zoo.language.models import embedded, load
from tests.zoo.models import int8_round_trip, padded, set_class
from tests.zoo.pairs import POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless
from tests.zoo.parts import Pooled, mean_of_all, mean_of_real


@harmless("dtype/distilbert_bfloat16")
def dtype_distilbert() -> PairModels:
    """bfloat16 asked for, weights rounded with it."""
    reference, candidate = (load("distilbert", dtype) for dtype in (torch.float32, torch.bfloat16))
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmless("dtype_of_embeds/bert_float16")
def dtype_of_embeds_bert() -> PairModels:
    """Embeddings as input, cast with the model."""
    reference, candidate = (load("bert", dtype) for dtype in (torch.float32, torch.float16))
    inputs = embedded(reference, padded("right"))
    narrow = inputs | {"inputs_embeds": inputs["inputs_embeds"].half()}
    return PairModels(reference=reference, candidate=candidate, inputs=inputs, candidate_inputs=narrow)


@harmless("attention_backend/modernbert_float32")
def attention_backend_modernbert() -> PairModels:
    """eager against sdpa, with windows."""
    inputs = padded("right", positions=False)
    return edited(load("modernbert"), inputs, lambda model: model.set_attn_implementation("sdpa"))


@harmless("pad_amount/modernbert_bfloat16")
def pad_amount_modernbert() -> PairModels:
    """Right padding to 11 columns and to 24."""
    model = load("modernbert", torch.bfloat16, "sdpa")
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=padded("right", positions=False),
        candidate_inputs=padded("right", columns=24, positions=False),
    )


@harmless("merged_adapter/bert_float32")
def merged_adapter_bert() -> PairModels:
    """A LoRA beside two projections against the same merged into them."""
    reference = load("bert")
    with torch.no_grad():
        for layer in reference.encoder.layer:
            layer.output.dense = parts.Lora(layer.output.dense, scale=0.02)

    def edit(model: Any) -> None:
        for layer in model.encoder.layer:
            layer.output.dense = layer.output.dense.merged()

    return edited(reference, padded(), edit)


@harmful("window/modernbert_float32", allowed=SEMANTIC, cause=("window", "local_attention", "mask"))
def window_modernbert() -> PairModels:
    """Four tokens to either side where three were trained: a window counted inclusively."""
    reference, candidate = load("modernbert"), load("modernbert", local_attention=8)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmful("layer_types/modernbert_float32", allowed=STATE, cause=("inv_freq", "rope", "rotary"))
def layer_types_modernbert() -> PairModels:
    """The local rope base in global layers too, as a config that knows one."""

    def edit(model: Any) -> None:
        rotary = model.model.rotary_emb
        rotary.full_attention_inv_freq.copy_(rotary.sliding_attention_inv_freq)

    return edited(load("modernbert"), padded("right", positions=False), edit)


@harmful("cast_after_load/modernbert_bfloat16", allowed=POLICY, cause=("inv_freq",))
def cast_after_load_modernbert() -> PairModels:
    """.to(bfloat16) rounds the frequencies of both kinds of layer, dtype= does not."""
    reference, candidate = load("modernbert", torch.bfloat16), load("modernbert").to(torch.bfloat16)
    return PairModels(reference=reference, candidate=candidate, inputs=padded("right", positions=False))


@harmful("position_offset/roberta_float32", allowed=SEMANTIC, cause=("position",))
def position_offset_roberta() -> PairModels:
    """Positions from 0 where RoBERTa counts from behind the pad token's (fairseq's convention)."""
    model, inputs = load("roberta"), padded("right", positions=False)
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=padded("right", positions=True)
    )


@harmful("token_types/albert_float16", allowed=STATE, cause=("token_type",))
def token_types_albert() -> PairModels:
    """The embeddings of both token types swapped."""

    def edit(model: Any) -> None:
        weight = model.embeddings.token_type_embeddings.weight
        weight.copy_(weight.flip(0))

    return edited(load("albert", torch.float16), typed(), edit)


@harmful("transposed_weight/distilbert_bfloat16", allowed=STATE, cause=("out_lin",))
def transposed_weight_distilbert() -> PairModels:
    """A square output projection transposed."""

    def edit(model: Any) -> None:
        weight = model.transformer.layer[1].attention.out_lin.weight
        weight.copy_(weight.T.clone())

    return edited(load("distilbert", torch.bfloat16), padded("right", positions=False), edit)


@harmful("pooling/distilbert_float16", allowed=SEMANTIC, cause=("pool", "mean_of"))
def pooling_distilbert() -> PairModels:
    """The mean over pads too (sentence embeddings without their mask)."""
    model = load("distilbert", torch.float16)
    candidate = Pooled(deepcopy(model), mean_of_all)
    return PairModels(
        reference=Pooled(model, mean_of_real), candidate=candidate, inputs=padded("right", positions=False)
    )


@harmful("not_finite/distilbert_float16", allowed=SEMANTIC, cause=("pool", "sum_then", "divide", "finite", "inf"))
def not_finite_distilbert() -> PairModels:
    """A mean that is summed before it is divided: float16 overflows in some columns."""
    model = load("distilbert", torch.float16)
    with torch.no_grad():
        model.transformer.layer[1].output_layer_norm.weight *= 8000
    candidate = Pooled(deepcopy(model), wrappers.sum_then_divide)
    inputs = padded("right", positions=False)
    return PairModels(reference=Pooled(model, wrappers.divide_then_sum), candidate=candidate, inputs=inputs)


@harmful("norm_in_half/bert_bfloat16", allowed=SEMANTIC, cause=("norm",))
def norm_in_half_bert() -> PairModels:
    """The variance as E[x^2] - E[x]^2 in bfloat16, over embeddings whose mean is far from zero."""
    reference = load("bert", torch.bfloat16)
    with torch.no_grad():
        reference.embeddings.position_embeddings.weight += 1
    return edited(
        reference,
        padded(),
        lambda model: set_class(model.embeddings.LayerNorm, parts.OnePassNorm),
    )


@harmful("quantised_weight/bert_float32", allowed=STATE, cause=("query",))
def quantised_weight_bert() -> PairModels:
    """One query projection went through int8 and back, which nobody asked for."""
    return edited(
        load("bert"), padded(), lambda model: int8_round_trip(model.encoder.layer[0].attention.self.query.weight)
    )


@harmful("random_in_eval/bert_bfloat16", allowed=STATE, cause=("random", "repeat", "embeddings"))
def randomly_masked_bert() -> PairModels:
    """A tenth of the embeddings is masked at random in eval too, on both sides: neither can be compared."""
    reference = load("bert", torch.bfloat16)
    set_class(reference.embeddings, parts.RandomlyMasked)
    return edited(reference, padded(), lambda model: model.encoder.layer[0].output.dense.weight[3].mul_(2))


@harmful("input_written/bert_float32", allowed=SEMANTIC, cause=("input_ids", "replaces", "written", "in place"))
def input_written_bert() -> PairModels:
    """The candidate writes a special token over the first of each text, in the tensor that it was given."""
    model = load("bert")
    candidate = wrappers.ReplacesFirstToken(deepcopy(model))
    return PairModels(reference=wrappers.Wrapped(model), candidate=candidate, inputs=padded())


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
