"""Pairs of encoder-decoders: T5 and BART."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import nn

from tests.zoo.language import parts
from tests.zoo.language.edits import scale_encoder_states
from tests.zoo.language.models import decoder_ids, load, two_sided
from tests.zoo.models import set_class, untie
from tests.zoo.pairs import IDENTICAL, SEMANTIC, Pair, PairModels, edited, harmful, harmless
from tests.zoo.parts import Reordered


@harmless("same_twice/t5_float16", allowed=IDENTICAL)
def same_twice_t5() -> PairModels:
    """One folder loaded twice in float16, of which transformers keeps some matrices in float32."""
    reference, candidate = (load("t5", torch.float16) for _ in range(2))
    return PairModels(reference=reference, candidate=candidate, inputs=two_sided())


@harmless("attention_backend/bart_float16")
def attention_backend_bart() -> PairModels:
    """eager against sdpa in encoder, decoder and between them."""
    reference, candidate = (load("bart", torch.float16, backend) for backend in ("eager", "sdpa"))
    return PairModels(reference=reference, candidate=candidate, inputs=two_sided(decoder="right"))


@harmless("permuted_batch/bart_float32")
def permuted_batch_bart() -> PairModels:
    """The rows of a batch in another order, put back at the end."""
    model = load("bart")
    candidate = Reordered(deepcopy(model), (2, 1, 0))
    return PairModels(reference=Reordered(model, (0, 1, 2)), candidate=candidate, inputs=two_sided())


@harmless("encoder_pad_side/t5_float32")
def encoder_pad_side_t5() -> PairModels:
    """The encoder's pads on the right and on the left: its positions are relative."""
    model = load("t5")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=two_sided(), candidate_inputs=two_sided(encoder="left")
    )


@harmless("fresh_adapter/t5_float32")
def fresh_adapter_t5() -> PairModels:
    """A LoRA that adds zeros to queries and values of the decoder."""

    def edit(model: Any) -> None:
        for block in model.decoder.block:
            attention = block.layer[0].SelfAttention
            attention.q, attention.v = (parts.Lora(linear, scale=0.0) for linear in (attention.q, attention.v))

    return edited(load("t5"), two_sided(), edit)


@harmless("equal_head/bart_bfloat16", allowed=IDENTICAL)
def equal_head_bart() -> PairModels:
    """A tied head against an untied one with the same values."""
    return edited(load("bart", torch.bfloat16), two_sided(), untie)


@harmless("padded_vocabulary/bart_bfloat16")
def padded_vocabulary_bart() -> PairModels:
    """320 rows of embedding and head where 300 are used."""

    def edit(model: Any) -> None:
        torch.manual_seed(0)
        model.resize_token_embeddings(300, pad_to_multiple_of=64, mean_resizing=False)

    return edited(load("bart", torch.bfloat16), two_sided(), edit)


@harmless("folded_norm/t5_float32")
def folded_norm_t5() -> PairModels:
    """The weight of a norm multiplied into the matrix behind it."""

    def edit(model: Any) -> None:
        feed_forward = model.encoder.block[1].layer[1]
        feed_forward.DenseReluDense.wi.weight *= feed_forward.layer_norm.weight
        feed_forward.layer_norm.weight.fill_(1.0)

    return edited(load("t5"), two_sided(), edit)


@harmful("encoder_mask_on_decoder/t5_bfloat16", allowed=SEMANTIC, cause=("mask",))
def encoder_mask_on_decoder_t5() -> PairModels:
    """The encoder's mask, whose pads are on the left, lies over as many decoder tokens."""
    inputs = two_sided(encoder="left") | {"decoder_input_ids": decoder_ids(11)}
    return edited(load("t5", torch.bfloat16), inputs, lambda model: set_class(model, parts.EncoderMaskOnT5Decoder))


@harmful("decoder_mask_dropped/bart_float16", allowed=SEMANTIC, cause=("mask",))
def decoder_mask_dropped_bart() -> PairModels:
    """The decoder's pads are on the left, and its mask is dropped."""
    inputs = two_sided(decoder="left")
    return edited(load("bart", torch.float16), inputs, lambda model: set_class(model, parts.DecoderMaskIgnored))


@harmful("cross_mask_dropped/t5_float32", allowed=SEMANTIC, cause=("mask", "encdecattention"))
def cross_mask_dropped_t5() -> PairModels:
    """The decoder reads the encoder's pads, which the encoder itself left alone."""

    def edit(model: Any) -> None:
        for block in model.decoder.block:
            set_class(block.layer[1].EncDecAttention, parts.UnmaskedT5Attention)

    return edited(load("t5"), two_sided(), edit)


@harmful("left_padded_absolute/bart_float32", allowed=SEMANTIC, cause=("position", "pad"))
def left_padded_absolute_bart() -> PairModels:
    """The encoder's pads on the left of learnt positions, which count them."""
    model = load("bart")
    return PairModels(
        reference=model, candidate=deepcopy(model), inputs=two_sided(), candidate_inputs=two_sided(encoder="left")
    )


@harmful("own_states/t5_bfloat16", allowed=SEMANTIC, cause=("encdecattention", "ownstates"))
def own_states_t5() -> PairModels:
    """Cross-attention that reads the decoder's own states."""
    return edited(
        load("t5", torch.bfloat16),
        two_sided(),
        lambda model: set_class(model.decoder.block[1].layer[1].EncDecAttention, parts.OwnStatesT5Attention),
    )


@harmful("decoder_start/t5_float32", allowed=SEMANTIC, cause=("shift", "decoder_input_ids", "decoder"))
def decoder_start_t5() -> PairModels:
    """The decoder's tokens are the labels themselves where those shifted by one were trained."""
    model, labels = load("t5"), decoder_ids()
    shifted = torch.cat([torch.zeros_like(labels[:, :1]), labels[:, :-1]], dim=1)
    inputs = two_sided()
    return PairModels(
        reference=model,
        candidate=deepcopy(model),
        inputs=inputs | {"decoder_input_ids": shifted},
        candidate_inputs=inputs | {"decoder_input_ids": labels},
    )


@harmful("relative_bias/t5_float16", allowed=SEMANTIC, cause=("relative", "bias", "bucket", "max_distance"))
def relative_distance_t5() -> PairModels:
    """Buckets that reach as far as 128 where 10 was trained: the default of a config key that is not read."""
    reference, candidate = (
        load("t5", torch.float16, relative_attention_max_distance=distance) for distance in (10, 128)
    )
    return PairModels(reference=reference, candidate=candidate, inputs=two_sided())


@harmful("scale_dropped/t5_float32", allowed=SEMANTIC, cause=("scal", "lm_head", "logits"))
def scale_dropped_t5() -> PairModels:
    """Logits that are not scaled by 1 / sqrt(D), as T5 1.1's are not and T5's are (mlx-examples#591)."""
    return edited(load("t5"), two_sided(), lambda model: setattr(model.config, "scale_decoder_outputs", False))


@harmful("scale_dropped/bart_bfloat16", allowed=SEMANTIC, cause=("embed", "scal"))
def scale_dropped_bart() -> PairModels:
    """Embeddings that are not multiplied by sqrt(D), where scale_embedding was trained (Marian, mBART, Pegasus)."""
    reference, candidate = (load("bart", torch.bfloat16, scale_embedding=scaled) for scaled in (True, False))
    return PairModels(reference=reference, candidate=candidate, inputs=two_sided())


@harmful("epsilon/t5_float32", allowed=SEMANTIC, cause=("eps", "norm"))
def epsilon_t5() -> PairModels:
    """torch's default epsilon of 1e-5 for 1e-6 in the encoder's first norm, which sees small numbers."""
    reference = load("t5")
    with torch.no_grad():
        reference.shared.weight *= 0.1
    return edited(
        reference,
        two_sided(),
        lambda model: setattr(model.encoder.block[0].layer[0].layer_norm, "variance_epsilon", 1e-5),
    )


@harmful("norm_offset/t5_bfloat16", allowed=SEMANTIC, cause=("norm",))
def norm_offset_t5() -> PairModels:
    """The decoder's last norm scales by 1 + w."""
    return edited(
        load("t5", torch.bfloat16),
        two_sided(decoder="right"),
        lambda model: set_class(model.decoder.final_layer_norm, parts.T5OffsetNorm),
    )


@harmful("activation/t5_bfloat16", allowed=SEMANTIC, cause=("act", "relu", "gelu", "silu", "dense"))
def activation_t5() -> PairModels:
    """silu for relu in the decoder."""

    def edit(model: Any) -> None:
        for block in model.decoder.block:
            block.layer[2].DenseReluDense.act = nn.SiLU()

    return edited(load("t5", torch.bfloat16), two_sided(), edit)


@harmful("second_output/t5_bfloat16", allowed=SEMANTIC, cause=("encoder",))
def second_output_t5() -> PairModels:
    """The logits are right; the encoder's states beside them are a tenth larger, by a hook that stayed behind."""
    return edited(
        load("t5", torch.bfloat16),
        two_sided(),
        lambda model: model.register_forward_hook(scale_encoder_states),
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
