"""Pairs of a residual convolutional net, a UNet and a detector."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import fusion

from tests.zoo.models import set_class
from tests.zoo.others import convolutional as nets
from tests.zoo.others.convolutional import built, noisy, photos
from tests.zoo.pairs import HARMLESS, POLICY, SEMANTIC, STATE, Pair, PairModels, edited, harmful, harmless


def fold(model: Any) -> None:
    """Fold both BatchNorms into the convolutions before them."""
    for conv, norm in (("stem", "stem_norm"), ("conv", "conv_norm")):
        setattr(model, conv, fusion.fuse_conv_bn_eval(getattr(model, conv), getattr(model, norm)))
        setattr(model, norm, nn.Identity())


@harmless("input_cast/unet_bfloat16")
def input_cast_unet() -> PairModels:
    """float32 against bfloat16 with the sample cast along; the timesteps stay integers."""
    return PairModels(
        reference=built(nets.UNet),
        candidate=built(nets.UNet, torch.bfloat16),
        inputs=noisy(),
        candidate_inputs=noisy(torch.bfloat16),
    )


@harmless("batch_norm_folded/convnet_float32")
def batch_norm_folded_convnet() -> PairModels:
    """Both BatchNorms folded into the convolutions before them, as for deployment."""
    return edited(built(nets.ResidualNet), photos(), fold)


@harmless("batch_norm_folded/convnet_float16")
def batch_norm_folded_half_convnet() -> PairModels:
    """Expected to be among the hardest: folded in float32 and then cast to float16, against float32 with its norms."""
    reference = built(nets.ResidualNet)
    reference.preprocess = nn.Identity()
    pair = edited(reference, photos(), fold)
    return PairModels(
        reference=reference,
        candidate=pair.candidate.half(),
        inputs=pair.inputs,
        candidate_inputs=photos(torch.float16),
    )


@harmless("channels_last/convnet_float32")
def channels_last_convnet() -> PairModels:
    """Weights and images in the memory format channels_last."""
    images = {"images": photos()["images"].contiguous(memory_format=torch.channels_last)}
    model = built(nets.ResidualNet)
    candidate = deepcopy(model).to(memory_format=torch.channels_last)
    return PairModels(reference=model, candidate=candidate, inputs=photos(), candidate_inputs=images)


@harmless("channels_last/unet_bfloat16")
def channels_last_unet() -> PairModels:
    """The weights alone in the memory format channels_last."""
    return edited(
        built(nets.UNet, torch.bfloat16),
        noisy(torch.bfloat16),
        lambda model: model.to(memory_format=torch.channels_last),
    )


@harmless("input_written/convnet_float32", allowed=HARMLESS)
def input_written_convnet() -> PairModels:
    """The candidate normalises its images in place (transformers#47741): the same function of what it is given."""
    return edited(built(nets.ResidualNet), photos(), lambda model: set_class(model.preprocess, nets.PreprocessInPlace))


@harmless("input_written/stem_float16")
def input_written_half_stem() -> PairModels:
    """Both sides write into the images that they are given, in float32 and in float16."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, images: Tensor) -> Tensor:
            return self.conv(images.sub_(0.5).mul_(4))

    return PairModels(
        reference=built(Stem),
        candidate=built(Stem, torch.float16),
        inputs=photos(),
        candidate_inputs=photos(torch.float16),
    )


@harmful("weight_edited/convnet_bfloat16", allowed=STATE, cause=("head",))
def input_written_weight_convnet() -> PairModels:
    """Both sides normalise their images in place, and one weight of the head differs by 0.1."""
    reference = built(nets.ResidualNet, torch.bfloat16)
    set_class(reference.preprocess, nets.PreprocessInPlace)
    return edited(reference, photos(torch.bfloat16), lambda model: model.head.weight[2, 3].add_(0.1))


@harmful("normalisation/convnet_float32", allowed=STATE, cause=("mean", "std", "preprocess"))
def normalisation_convnet() -> PairModels:
    """The constants of CLIP for those of ImageNet: mean and std differ by less than 0.05."""

    def edit(model: Any) -> None:
        model.preprocess.mean.copy_(torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None])
        model.preprocess.std.copy_(torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None])

    return edited(built(nets.ResidualNet), photos(), edit)


@harmful("normalisation/convnet_bfloat16", allowed=STATE, cause=("mean", "std", "preprocess"))
def normalisation_swapped_convnet() -> PairModels:
    """The standard deviation of one channel is its mean: a line was copied."""
    return edited(
        built(nets.ResidualNet, torch.bfloat16),
        photos(torch.bfloat16),
        lambda model: model.preprocess.std[1].copy_(model.preprocess.mean[1]),
    )


@harmful("channel_order/convnet_float32", allowed=SEMANTIC, cause=("preprocess",))
def channel_order_convnet() -> PairModels:
    """The model takes RGB for BGR behind its normalisation."""
    return edited(built(nets.ResidualNet), photos(), lambda model: set_class(model.preprocess, nets.PreprocessReversed))


@harmful("padding/convnet_float32", allowed=SEMANTIC, cause=("pad", "stem"))
def padding_convnet() -> PairModels:
    """The strided stem pads at the bottom and the right alone, as TensorFlow's SAME (timm's tf_ models)."""
    return edited(built(nets.ResidualNet), photos(), lambda model: set_class(model.stem, nets.SamePadded))


@harmful("padding/unet_float16", allowed=SEMANTIC, cause=("pad", "downsample"))
def padding_unet() -> PairModels:
    """One convolution of a UNet pads by reflection: only pixels at the border are wrong."""

    def edit(model: Any) -> None:
        model.downsample.padding_mode = "reflect"
        model.downsample._reversed_padding_repeated_twice = [1, 1, 1, 1]

    return edited(built(nets.UNet, torch.float16), noisy(torch.float16), edit)


@harmful("batch_norm/convnet_float32", allowed=STATE, cause=("train", "norm"))
def batch_norm_training_convnet() -> PairModels:
    """One BatchNorm was left in training mode: it takes the statistics of the batch and updates its own."""
    return edited(built(nets.ResidualNet), photos(), lambda model: model.conv_norm.train())


@harmful("batch_norm/convnet_bfloat16", allowed=SEMANTIC, cause=("eps", "norm"))
def batch_norm_eps_convnet() -> PairModels:
    """Expected to be among the hardest: eps 1e-3, TensorFlow's, for 1e-5 in one of two norms."""
    return edited(
        built(nets.ResidualNet, torch.bfloat16),
        photos(torch.bfloat16),
        lambda model: setattr(model.stem_norm, "eps", 1e-3),
    )


@harmful("batch_norm/residual_float32", allowed=STATE, cause=("running",))
def batch_norm_stale_convnet() -> PairModels:
    """The running statistics of one norm were not loaded: 0 and 1 (load_state_dict of parameters alone)."""
    return edited(built(nets.ResidualNet), photos(), lambda model: model.conv_norm.reset_running_stats())


@harmful("batch_norm/residual_float16", allowed=STATE, cause=("running",))
def batch_norm_updated_convnet() -> PairModels:
    """A batch went through in training mode before the model was put in evaluation mode: the statistics moved."""

    def edit(model: Any) -> None:
        model.train()
        model(photos(torch.float16)["images"].flip(2))
        model.eval()

    return edited(built(nets.ResidualNet, torch.float16), photos(torch.float16), edit)


@harmful("group_norm/unet_float32", allowed=SEMANTIC, cause=("group", "norm"))
def group_norm_unet() -> PairModels:
    """One norm has 8 groups for 4."""
    return edited(built(nets.UNet), noisy(), lambda model: setattr(model.middle.norm, "num_groups", 8))


@harmful("group_norm/unet_bfloat16", allowed=SEMANTIC, cause=("group", "norm"))
def group_norm_all_unet() -> PairModels:
    """Every norm has 2 groups for 4, in bfloat16 against float32."""
    candidate = built(nets.UNet, torch.bfloat16)
    for module in candidate.modules():
        if isinstance(module, nn.GroupNorm):
            module.num_groups = 2
    return PairModels(
        reference=built(nets.UNet), candidate=candidate, inputs=noisy(), candidate_inputs=noisy(torch.bfloat16)
    )


@harmful("interpolation/unet_float32", allowed=SEMANTIC, cause=("align_corners", "upsample"))
def interpolation_unet() -> PairModels:
    """Upsampling with align_corners."""
    return edited(built(nets.UNet), noisy(), lambda model: setattr(model.upsample, "align_corners", True))


@harmful("timestep/unet_float32", allowed=SEMANTIC, cause=("flip", "time_embed"))
def timestep_flipped_unet() -> PairModels:
    """Cosines first for sines first: diffusers' flip_sin_to_cos, forgotten in a conversion."""
    return edited(built(nets.UNet), noisy(), lambda model: setattr(model.time_embed, "flip", True))


@harmful("timestep/unet_bfloat16", allowed=SEMANTIC, cause=("shift", "time_embed"))
def timestep_shift_unet() -> PairModels:
    """The frequencies end one step later: diffusers' downscale_freq_shift 1 for 0."""
    return edited(
        built(nets.UNet, torch.bfloat16), noisy(torch.bfloat16), lambda model: setattr(model.time_embed, "shift", 1)
    )


@harmful("narrow/unet_bfloat16", allowed=STATE, cause=("time_embed",))
def narrow_angles_unet() -> PairModels:
    """The angles of the timestep are computed in bfloat16: 997 becomes 996, and angles are off by whole radians."""
    return edited(
        built(nets.UNet, torch.bfloat16),
        noisy(torch.bfloat16),
        lambda model: set_class(model.time_embed, nets.NarrowTimeEmbedding),
    )


@harmful("narrow/unet_float16", allowed=STATE, cause=("time_embed",))
def narrow_angles_half_unet() -> PairModels:
    """The same in float16, which holds 997; the frequencies are what is rounded."""
    return edited(
        built(nets.UNet, torch.float16),
        noisy(torch.float16),
        lambda model: set_class(model.time_embed, nets.NarrowTimeEmbedding),
    )


@harmful("skips/unet_float32", allowed=SEMANTIC, cause=("up_blocks", "skip"))
def skips_in_order_unet() -> PairModels:
    """The skips are taken first to last, which their shapes allow."""
    return edited(built(nets.UNet), noisy(), lambda model: set_class(model, nets.UNetSkipsInOrder))


@harmful("skips/unet_bfloat16", allowed=SEMANTIC, cause=("up_blocks", "skip"))
def skips_missing_unet() -> PairModels:
    """The last blocks get zeros for skips."""
    return edited(
        built(nets.UNet, torch.bfloat16), noisy(torch.bfloat16), lambda model: set_class(model, nets.UNetWithoutSkips)
    )


@harmful("rounded_buffer/convnet_float32", allowed=POLICY, cause=("mean", "std"))
def rounded_constants_convnet() -> PairModels:
    """The constants of the normalisation went through bfloat16 and back; everything else is float32."""
    return edited(built(nets.ResidualNet), photos(), lambda model: model.preprocess.bfloat16().float())


@harmful("rounded_buffer/unet_bfloat16", allowed=POLICY, cause=("table",))
def rounded_table_unet() -> PairModels:
    """The frequencies of a bfloat16 model stayed float32 in the reference and were cast in the candidate."""
    candidate = built(nets.UNet, torch.bfloat16, time_class=nets.TabledTimeEmbedding)
    reference = deepcopy(candidate)
    reference.time_embed.table = nets.TimeEmbedding().frequencies()
    return PairModels(reference=reference, candidate=candidate, inputs=noisy(torch.bfloat16))


@harmful("rounded_buffer/detector_float16", allowed=POLICY, cause=("anchors",))
def rounded_anchors_detector() -> PairModels:
    """The anchors of a float16 detector were cast along: boxes are off by half a pixel, of a thousand."""
    candidate = built(nets.Detector, torch.float16)
    reference = deepcopy(candidate)
    reference.anchors = nets.Detector().anchors
    return PairModels(reference=reference, candidate=candidate, inputs=photos(torch.float16))


@harmful("second_output/detector_float32", allowed=SEMANTIC, cause=("label", "detector"))
def one_based_detector() -> PairModels:
    """Boxes agree, and the integer labels are counted from one."""
    return edited(built(nets.Detector), photos(), lambda model: set_class(model, nets.OneBasedDetector))


@harmful("not_a_number/convnet_float32", allowed=STATE, cause=("running_var", "norm"))
def not_a_number_convnet() -> PairModels:
    """One running variance is negative, so that one channel, and every logit, is NaN on one side."""
    return edited(built(nets.ResidualNet), photos(), lambda model: model.conv_norm.running_var[3].fill_(-0.5))


PAIRS = [value for value in globals().values() if isinstance(value, Pair)]
