"""Pairs of encoder-decoders: T5 and BART."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts
from tests.zoo.language.models import decoder_ids, embedded, load, two_sided
from tests.zoo.models import one_length, padded, set_class
from tests.zoo.pairs import SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("dtype/t5_bfloat16")
def dtype_t5() -> PairModels:
    """bfloat16 asked for, weights rounded with it, pads on both sides."""
    reference, candidate = (load("t5", dtype) for dtype in (torch.float32, torch.bfloat16))
    return PairModels(reference=reference, candidate=candidate, inputs=two_sided(decoder="right"))


@harmless("dtype/bart_float16")
def dtype_bart() -> PairModels:
    """float16 asked for, as many decoder tokens as encoder columns, pads on the encoder's side alone."""
    reference, candidate = (load("bart", dtype, saved_dtype=torch.float16) for dtype in (torch.float32, torch.float16))
    inputs = two_sided() | {"decoder_input_ids": decoder_ids(11)}
    return PairModels(reference=reference, candidate=candidate, inputs=inputs)


@harmless("dtype_of_embeds/t5_bfloat16")
def dtype_of_embeds_t5() -> PairModels:
    """Embeddings as the encoder's input, cast with the model."""
    reference, candidate = (load("t5", dtype) for dtype in (torch.float32, torch.bfloat16))
    inputs = embedded(reference, two_sided())
    narrow = inputs | {"inputs_embeds": inputs["inputs_embeds"].bfloat16()}
    return PairModels(reference=reference, candidate=candidate, inputs=inputs, candidate_inputs=narrow)


@harmless("pad_amount/t5_float32")
def pad_amount_t5() -> PairModels:
    """The encoder's texts padded to 11 columns and to 20; the decoder's are the same."""
    model = load("t5")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=two_sided(), candidate_inputs=two_sided(columns=20)
    )


@harmless("encoder_pad_side/t5_bfloat16")
def encoder_pad_side_half_t5() -> PairModels:
    """The encoder's pads on the right and on the left, by sdpa, with pads on the decoder's side too."""
    model = load("t5", torch.bfloat16, "sdpa")
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=two_sided(decoder="right"),
        candidate_inputs=two_sided(decoder="right", encoder="left", columns=13),
    )


@harmless("idle_argument/t5_float16")
def idle_argument_t5() -> PairModels:
    """A decoder mask of ones and the cache on, against neither."""
    model, inputs = load("t5", torch.float16), two_sided()
    spoken = inputs | {"decoder_attention_mask": torch.ones_like(inputs["decoder_input_ids"]), "use_cache": True}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=spoken)


@harmful("encoder_mask_on_decoder/bart_float32", allowed=SEMANTIC, cause=("mask",))
def encoder_mask_on_decoder_bart() -> PairModels:
    """The encoder's mask lies over as many decoder tokens, none of which is a pad."""
    inputs = two_sided() | {"decoder_input_ids": decoder_ids(11)}
    return edited(load("bart"), inputs, lambda model: set_class(model, parts.EncoderMaskOnDecoder))


@harmful("decoder_mask_dropped/t5_float32", allowed=SEMANTIC, cause=("mask",))
def decoder_mask_dropped_t5() -> PairModels:
    """The decoder's pads are on the left, and its mask is dropped."""
    return edited(load("t5"), two_sided(decoder="left"), lambda model: set_class(model, parts.T5DecoderMaskIgnored))


@harmful("cross_mask_dropped/bart_bfloat16", allowed=SEMANTIC, cause=("mask", "encoder_attn"))
def cross_mask_dropped_bart() -> PairModels:
    """One layer of the decoder reads the encoder's pads."""
    return edited(
        load("bart", torch.bfloat16),
        two_sided(),
        lambda model: set_class(model.model.decoder.layers[1].encoder_attn, parts.UnmaskedBartAttention),
    )


@harmful("own_states/bart_float32", allowed=SEMANTIC, cause=("encoder_attn", "ownstates"))
def own_states_bart() -> PairModels:
    """Cross-attention that reads the decoder's own states."""
    return edited(
        load("bart"),
        two_sided(),
        lambda model: set_class(model.model.decoder.layers[1].encoder_attn, parts.OwnStatesBartAttention),
    )


@harmful("decoder_start/bart_bfloat16", allowed=SEMANTIC, cause=("decoder_start", "start_token", "shift", "decoder"))
def decoder_start_bart() -> PairModels:
    """The decoder's tokens are made from the encoder's and begin with bos where eos was trained."""
    return edited(
        load("bart", torch.bfloat16),
        padded("right", positions=False),
        lambda model: setattr(model.config, "decoder_start_token_id", 1),
    )


@harmful("relative_bias/t5_float32", allowed=SEMANTIC, cause=("relative", "bias", "bucket", "selfattention"))
def relative_bias_t5() -> PairModels:
    """Buckets of one direction in the encoder, which was trained with both."""
    return edited(
        load("t5"),
        two_sided(),
        lambda model: setattr(model.encoder.block[0].layer[0].SelfAttention, "is_decoder", True),
    )


@harmful("activation/bart_float16", allowed=SEMANTIC, cause=("act", "gelu"))
def activation_bart() -> PairModels:
    """Expected to be among the hardest: gelu by tanh for gelu."""
    reference, candidate = (
        load("bart", torch.float16, activation_function=function) for function in ("gelu", "gelu_new")
    )
    return PairModels(reference=reference, candidate=candidate, inputs=two_sided())


@harmful("bias_dropped/bart_float32", allowed=STATE, cause=("final_logits_bias",))
def bias_dropped_bart() -> PairModels:
    """The buffer of biases over the logits is zero: a state dict of parameters alone."""
    return edited(load("bart"), two_sided(), lambda model: model.final_logits_bias.zero_())


@harmful("head_drifted/t5_float16", allowed=STATE, cause=("shared", "embed_tokens"))
def head_drifted_t5() -> PairModels:
    """The decoder's embedding is no longer the encoder's: half of a tie was loaded (transformers#48154)."""

    def edit(model: Any) -> None:
        table = nn.Embedding.from_pretrained(model.shared.weight.roll(1, dims=0), freeze=False)
        model.decoder.embed_tokens = table

    return edited(load("t5", torch.float16), two_sided(), edit)


@harmful("training_mode/t5_bfloat16", allowed=STATE, cause=("dropout", "train"))
def training_mode_t5() -> PairModels:
    """The candidate is in training mode."""
    return edited(load("t5", torch.bfloat16), two_sided(), lambda model: model.train())


@harmful("causal_off/bart_float32", allowed=SEMANTIC, cause=("mask", "causal", "self_attn", "attention"))
def causal_off_bart() -> PairModels:
    """One layer of the decoder sees the future."""
    return edited(
        load("bart"),
        one_length() | {"decoder_input_ids": one_length()["input_ids"]},
        lambda model: set_class(model.model.decoder.layers[1].self_attn, parts.UnmaskedBartAttention),
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
