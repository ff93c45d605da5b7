"""Pairs of Whisper and wav2vec2."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from tests.zoo.models import set_class, without
from tests.zoo.others.transformer_models import FrameShort, PositionsFromOne, speech, tiny, waves
from tests.zoo.pairs import SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("input_cast/whisper_float16")
def input_cast_whisper() -> PairModels:
    """float32 against float16 with input_features cast along; the sinusoids of the encoder are a parameter."""
    return PairModels(
        reference=tiny("whisper"),
        candidate=tiny("whisper", torch.float16),
        inputs=speech(),
        candidate_inputs=speech(torch.float16),
    )


@harmless("input_cast/wav2vec2_bfloat16")
def input_cast_wav2vec2() -> PairModels:
    """float32 against bfloat16 with input_values cast along; one convolution is parametrised by its norm."""
    return PairModels(
        reference=tiny("wav2vec2"),
        candidate=tiny("wav2vec2", torch.bfloat16),
        inputs=waves(mask=False),
        candidate_inputs=waves(torch.bfloat16, mask=False),
    )


@harmless("weight_norm_folded/wav2vec2_float32")
def weight_norm_folded_wav2vec2() -> PairModels:
    """The norm of pos_conv_embed folded into its weight, as before an export."""
    reference, candidate = tiny("wav2vec2"), tiny("wav2vec2")  # a copy would share the class that removal changes
    parametrize.remove_parametrizations(candidate.encoder.pos_conv_embed.conv, "weight")
    return PairModels(reference=reference, candidate=candidate, inputs=waves())


@harmful("weight_norm_dim/wav2vec2_float32", allowed=STATE, cause=("pos_conv_embed",))
def weight_norm_dim_wav2vec2() -> PairModels:
    """The 32 norms are taken a row instead of a position of the kernel, as weight_norm does without its dim=2."""

    reference, candidate = tiny("wav2vec2"), tiny("wav2vec2")
    embed = candidate.encoder.pos_conv_embed
    with torch.no_grad():
        norms, direction = (tensor.clone() for tensor in embed.conv.parametrizations.weight.parameters())
        parametrize.remove_parametrizations(embed.conv, "weight")
        weight_norm(embed.conv, dim=0)
        embed.conv.parametrizations.weight.original0.copy_(norms.reshape(32, 1, 1))
        embed.conv.parametrizations.weight.original1.copy_(direction)
    return PairModels(reference=reference, candidate=candidate, inputs=waves())


@harmful("decoder_positions/whisper_float32", allowed=SEMANTIC, cause=("position",))
def decoder_positions_whisper() -> PairModels:
    """The decoder's positions start at one."""
    return edited(
        tiny("whisper"), speech(), lambda model: set_class(model.model.decoder.embed_positions, PositionsFromOne)
    )


@harmful("decoder_positions/whisper_bfloat16", allowed=STATE, cause=("embed_positions",))
def encoder_sinusoids_whisper() -> PairModels:
    """The encoder's sinusoids are interleaved (sin cos sin cos) where the model was trained with halves."""

    def edit(model: Any) -> None:
        table = model.model.encoder.embed_positions.weight
        table.copy_(table.unflatten(1, (2, -1)).mT.flatten(1))

    return edited(tiny("whisper", torch.bfloat16), speech(torch.bfloat16), edit)


@harmful("audio_stride/whisper_float32", allowed=SEMANTIC, cause=("conv", "stride"))
def audio_stride_whisper() -> PairModels:
    """The first convolution is the one that strides: as many frames come out."""

    def edit(model: Any) -> None:
        model.model.encoder.conv1.stride, model.model.encoder.conv2.stride = (2,), (1,)

    return edited(tiny("whisper"), speech(), edit)


@harmful("audio_stride/wav2vec2_float16", allowed=SEMANTIC, cause=("conv", "stride", "feature_extractor"))
def audio_stride_wav2vec2() -> PairModels:
    """The strides 4 and 2 of the feature extractor are swapped: as many frames come out."""

    def edit(model: Any) -> None:
        first, second = model.feature_extractor.conv_layers
        first.conv.stride, second.conv.stride = (2,), (4,)

    return edited(tiny("wav2vec2", torch.float16), waves(torch.float16, mask=False), edit)


@harmful("feature_mask/wav2vec2_float32", allowed=SEMANTIC, cause=("mask",))
def feature_mask_dropped_wav2vec2() -> PairModels:
    """Padded audio without its mask: masked frames are attended to and convolved with."""
    model, inputs = tiny("wav2vec2"), waves()
    return PairModels(
        reference=model, candidate=tiny("wav2vec2"), inputs=inputs, candidate_inputs=without(inputs, "attention_mask")
    )


@harmful("feature_mask/wav2vec2_bfloat16", allowed=SEMANTIC, cause=("mask", "length", "frameshort"))
def feature_mask_short_wav2vec2() -> PairModels:
    """The mask of the frames ends two frames early."""
    return edited(tiny("wav2vec2", torch.bfloat16), waves(torch.bfloat16), lambda model: set_class(model, FrameShort))


@harmful("bias_dropped/whisper_float32", allowed=STATE, cause=("v_proj",))
def bias_dropped_whisper() -> PairModels:
    """A value projection without its bias: whoever saw that keys have none took it from the wrong one."""
    return edited(
        tiny("whisper"),
        speech(),
        lambda model: setattr(model.model.decoder.layers[1].encoder_attn.v_proj, "bias", None),
    )


@harmful("bias_dropped/wav2vec2_float16", allowed=STATE, cause=("feature_projection", "projection"))
def bias_dropped_wav2vec2() -> PairModels:
    """The projection of the features without its bias, in float16 against float32."""
    candidate = tiny("wav2vec2", torch.float16)
    candidate.feature_projection.projection.bias = None
    return PairModels(
        reference=tiny("wav2vec2"),
        candidate=candidate,
        inputs=waves(mask=False),
        candidate_inputs=waves(torch.float16, mask=False),
    )


@harmful("randomness/wav2vec2_float32", allowed=STATE, cause=("train", "mask", "random", "dropout"))
def randomness_wav2vec2() -> PairModels:
    """The reference was left in training mode: SpecAugment masks random frames; the candidate is as it should be."""
    dropouts = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "layerdrop")
    reference = tiny("wav2vec2", **dict.fromkeys(dropouts, 0.0))
    candidate = tiny("wav2vec2", **dict.fromkeys(dropouts, 0.0))
    return PairModels(reference=reference.train(), candidate=candidate, inputs=waves(mask=False))


@harmful("weight_edited/whisper_bfloat16", allowed=STATE, cause=("conv2",))
def weight_edited_whisper() -> PairModels:
    """Two taps of one kernel of the encoder are swapped."""

    def edit(model: Any) -> None:
        weight: nn.Parameter = model.model.encoder.conv2.weight
        weight[5, 6] = weight[5, 6].flip(0)

    return edited(tiny("whisper", torch.bfloat16), speech(torch.bfloat16), edit)


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
