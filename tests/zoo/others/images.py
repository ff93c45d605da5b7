"""Pairs of ViT, DINOv2, CLIP and SigLIP."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from tests.zoo.models import set_class
from tests.zoo.others.transformer_models import (
    BilinearPositions,
    ClassTokenLast,
    ImageEmbedding,
    RawLogitScale,
    TokenOf,
    TransposedPatches,
    captioned,
    pixels,
    tiny,
)
from tests.zoo.pairs import SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


@harmless("input_cast/vit_bfloat16")
def input_cast_vit() -> PairModels:
    """float32 against bfloat16 with pixel_values cast along, as the model needs it."""
    return PairModels(
        reference=tiny("vit"),
        candidate=tiny("vit", torch.bfloat16),
        inputs=pixels(),
        candidate_inputs=pixels(torch.bfloat16),
    )


@harmless("input_cast/clip_float16")
def input_cast_clip() -> PairModels:
    """float32 against float16 with pixel_values cast along; ids stay integers."""
    return PairModels(
        reference=tiny("clip", attention="sdpa"),
        candidate=tiny("clip", torch.float16, "sdpa"),
        inputs=captioned(),
        candidate_inputs=captioned(torch.float16),
    )


@harmless("input_cast/dinov2_bfloat16")
def input_cast_dinov2() -> PairModels:
    """float32 against bfloat16 with pixel_values cast along, positions stretched to a larger image."""
    return PairModels(
        reference=tiny("dinov2"),
        candidate=tiny("dinov2", torch.bfloat16),
        inputs=pixels(size=24),
        candidate_inputs=pixels(torch.bfloat16, size=24),
    )


@harmless("vision_backend/vit_float32")
def vision_backend_vit() -> PairModels:
    """eager against sdpa."""
    return edited(tiny("vit"), pixels(), lambda model: model.set_attn_implementation("sdpa"))


@harmless("vision_backend/siglip_bfloat16")
def vision_backend_siglip() -> PairModels:
    """eager against sdpa, in both towers."""
    return edited(
        tiny("siglip", torch.bfloat16),
        captioned(torch.bfloat16),
        lambda model: model.set_attn_implementation("sdpa"),
    )


@harmless("padded_classes/vit_float32")
def padded_classes_vit() -> PairModels:
    """A classifier of 10 classes against one whose head is padded to 16, as for a kernel's sake."""
    candidate = tiny("vit_classifier", num_labels=16)
    reference = tiny("vit_classifier")
    with torch.no_grad():
        padding = dict(candidate.named_parameters())
        for name, value in reference.named_parameters():
            padding[name][: len(value)] = value
    return PairModels(reference=reference, candidate=candidate, inputs=pixels())


@harmless("unused_part/vit_float32")
def unused_part_vit() -> PairModels:
    """A model without a pooler against one with a pooler, whose output the reference does not have."""
    reference, candidate = tiny("vit"), tiny("vit")
    reference.pooler = None
    return PairModels(reference=reference, candidate=candidate, inputs=pixels())


@harmful("channel_order/clip_float16", allowed=SEMANTIC, cause=("pixel_values",))
def channel_order_clip() -> PairModels:
    """The candidate is given BGR, as OpenCV reads images."""
    inputs = captioned(torch.float16)
    model = tiny("clip", torch.float16)
    flipped = inputs | {"pixel_values": inputs["pixel_values"].flip(1)}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=flipped)


@harmful("interpolation/dinov2_float32", allowed=SEMANTIC, cause=("position", "interpol", "bilinear", "embeddings"))
def interpolation_dinov2() -> PairModels:
    """Positions of a larger image stretched bilinearly instead of bicubically."""
    return edited(tiny("dinov2"), pixels(size=24), lambda model: set_class(model.embeddings, BilinearPositions))


@harmful("vision_positions/vit_float32", allowed=STATE, cause=("position_embeddings",))
def vision_positions_vit() -> PairModels:
    """The table of positions was loaded one row off."""

    def edit(model: Any) -> None:
        table = model.embeddings.position_embeddings
        table.copy_(table.roll(1, dims=1))

    return edited(tiny("vit"), pixels(), edit)


@harmful("vision_positions/clip_float16", allowed=STATE, cause=("position",))
def vision_positions_clip() -> PairModels:
    """The buffer of integer positions is off by one behind the class token (old checkpoints carry position_ids)."""

    def edit(model: Any) -> None:
        model.vision_model.embeddings.position_ids = model.vision_model.embeddings.position_ids.sub(1).clamp(min=0)

    return edited(tiny("clip", torch.float16), captioned(torch.float16), edit)


@harmful("class_token/vit_float32", allowed=SEMANTIC, cause=("embeddings", "cls", "class"))
def class_token_vit() -> PairModels:
    """The class token stands behind the patches."""
    return edited(tiny("vit"), pixels(), lambda model: set_class(model.embeddings, ClassTokenLast))


@harmful("class_token/dinov2_bfloat16", allowed=SEMANTIC, cause=("index", "tokenof"))
def class_token_dinov2() -> PairModels:
    """The embedding of an image is read at its first patch instead of its class token."""
    model = tiny("dinov2", torch.bfloat16)
    return PairModels(reference=TokenOf(model, 0), candidate=TokenOf(deepcopy(model), 1), inputs=pixels(torch.bfloat16))


@harmful("patch_order/siglip_float32", allowed=SEMANTIC, cause=("patch",))
def patch_order_siglip() -> PairModels:
    """Patches are taken column by column."""
    return edited(
        tiny("siglip"),
        captioned(),
        lambda model: set_class(model.vision_model.embeddings.patch_embedding, TransposedPatches),
    )


@harmful("patch_order/vit_float16", allowed=SEMANTIC, cause=("patch",))
def patch_order_vit() -> PairModels:
    """Patches are taken column by column, in float16 against float32."""
    candidate = tiny("vit", torch.float16)
    set_class(candidate.embeddings.patch_embeddings.projection, TransposedPatches)
    return PairModels(
        reference=tiny("vit"), candidate=candidate, inputs=pixels(), candidate_inputs=pixels(torch.float16)
    )


@harmful("quick_gelu/clip_float32", allowed=SEMANTIC, cause=("gelu", "activation", "mlp"))
def quick_gelu_clip() -> PairModels:
    """gelu in both towers of a model trained with quick_gelu, as OpenAI's weights in open_clip without -quickgelu."""
    gelu = {"hidden_act": "gelu"}
    return PairModels(
        reference=tiny("clip"), candidate=tiny("clip", text_config=gelu, vision_config=gelu), inputs=captioned()
    )


@harmful("quick_gelu/clip_bfloat16", allowed=SEMANTIC, cause=("gelu", "activation", "mlp"))
def quick_gelu_half_clip() -> PairModels:
    """quick_gelu in the vision tower alone, in bfloat16."""
    reference, candidate = (
        tiny("clip", torch.bfloat16, vision_config={"hidden_act": name}) for name in ("gelu", "quick_gelu")
    )
    return PairModels(reference=reference, candidate=candidate, inputs=captioned(torch.bfloat16))


@harmful("logit_scale/clip_float32", allowed=SEMANTIC, cause=("logit", "scal"))
def logit_scale_clip() -> PairModels:
    """The temperature is not exponentiated; every embedding agrees and only the logits differ."""
    return edited(tiny("clip"), captioned(), lambda model: set_class(model, RawLogitScale))


@harmful("logit_scale/siglip_bfloat16", allowed=STATE, cause=("logit_bias",))
def logit_scale_siglip() -> PairModels:
    """The bias of the logits is zero: a port of CLIP that SigLIP's weights were loaded into."""
    reference = tiny("siglip", torch.bfloat16)
    with torch.no_grad():
        reference.logit_bias.fill_(-10)
    return edited(reference, captioned(torch.bfloat16), lambda model: model.logit_bias.zero_())


@harmful("feature_mask/siglip_float16", allowed=SEMANTIC, cause=("mask",))
def feature_mask_siglip() -> PairModels:
    """A mask over pads that SigLIP was trained to attend to: its processor gives none, and somebody made one."""
    inputs = captioned(torch.float16)
    inputs["input_ids"][1:, 5:] = 0
    model = tiny("siglip", torch.float16)
    masked = inputs | {"attention_mask": (inputs["input_ids"] > 0).long()}
    return PairModels(reference=model, candidate=deepcopy(model), inputs=inputs, candidate_inputs=masked)


@harmful("normalise/clip_float32", allowed=SEMANTIC, cause=("normal", "imageembedding"))
def normalise_clip() -> PairModels:
    """Embeddings of images that are not brought to length 1."""
    model = tiny("clip")
    return PairModels(
        reference=ImageEmbedding(model, normalise=True),
        candidate=ImageEmbedding(deepcopy(model), normalise=False),
        inputs=pixels(),
    )


@harmful("attention_scale/vit_float32", allowed=SEMANTIC, cause=("scal", "attention"))
def attention_scale_vit() -> PairModels:
    """One layer scales its scores by the hidden size instead of the head's."""
    return edited(tiny("vit"), pixels(), lambda model: setattr(model.layers[1].attention, "scaling", 32**-0.5))


@harmful("randomness/vit_float32", allowed=STATE, cause=("dropout", "train"))
def randomness_vit() -> PairModels:
    """The candidate was left in training mode."""
    model = tiny("vit", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
    return edited(model, pixels(), lambda model: model.train())


@harmful("weight_edited/siglip_float32", allowed=STATE, cause=("out_proj",))
def weight_edited_siglip() -> PairModels:
    """One element of one weight of the text tower differs by 0.1."""
    return edited(
        tiny("siglip"),
        captioned(),
        lambda model: model.text_model.encoder.layers[0].self_attn.out_proj.weight[3, 4].add_(0.1),
    )


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
