"""Plain convolutional nets: a small residual net with BatchNorm, a UNet with a timestep, a detector with anchors.

Shapes: B batch rows, C channels, H and W pixels, D embedding, A anchors.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.pairs import Inputs

WIDTH = 16


def built(module_class: type[nn.Module], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A seeded module in evaluation mode; norms have weights, biases and statistics that are not neutral."""
    torch.manual_seed(11)
    module = module_class(**options)
    with torch.no_grad():
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.ndim == 1 and name.endswith(("weight", "running_var")):
                tensor.uniform_(0.5, 1.5)
            elif tensor.ndim == 1 and name.endswith(("bias", "running_mean")):
                tensor.uniform_(-0.3, 0.3)
    return module.to(dtype).eval()


def photos(dtype: torch.dtype = torch.float32, *, pixels: int = 16) -> Inputs:
    """Seeded images [B, 3, H, W] between 0 and 1."""
    return {"images": torch.rand(4, 3, pixels, pixels, generator=torch.Generator().manual_seed(12)).to(dtype)}


def noisy(dtype: torch.dtype = torch.float32) -> Inputs:
    """Seeded noise [B, 3, H, W] and whole timesteps [B], as a diffusion sampler gives them."""
    sample = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(13)).to(dtype)
    return {"sample": sample, "timestep": torch.tensor([7, 480, 997])}


class Preprocess(nn.Module):
    """Normalises the channels of images with constants kept as buffers (ImageNet's)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None])
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        return (images - self.get_buffer("mean")) / self.get_buffer("std")


class PreprocessInPlace(Preprocess):
    """Normalises by writing into the images that it is given."""

    def forward(self, images: Tensor) -> Tensor:
        return images.sub_(self.get_buffer("mean")).div_(self.get_buffer("std"))


class PreprocessReversed(Preprocess):
    """Takes RGB for BGR after normalising."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).flip(1)


class ResidualNet(nn.Module):
    """A strided stem and a residual block, each convolution with a BatchNorm, and a head over the mean of the image."""

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.preprocess = Preprocess()
        self.stem = nn.Conv2d(3, WIDTH, 3, stride=2, padding=1, bias=False)
        self.stem_norm: nn.Module = nn.BatchNorm2d(WIDTH)
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.conv_norm: nn.Module = nn.BatchNorm2d(WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.relu(self.stem_norm(self.stem(self.preprocess(images))))
        hidden = hidden + functional.relu(self.conv_norm(self.conv(hidden)))
        return self.head(hidden.mean(dim=(2, 3)))


class SamePadded(nn.Conv2d):
    """Pads a strided convolution at the bottom and the right alone, as TensorFlow's SAME does."""

    def forward(self, input: Tensor) -> Tensor:
        padded = functional.pad(input, (0, 1, 0, 1))
        return functional.conv2d(padded, self.weight, self.bias, self.stride)


class TimeEmbedding(nn.Module):
    """Sines and cosines of a timestep [B] in float32, projected to [B, D] in the dtype of the model.

    Attributes:
        flip: cosines first.
        shift: subtracted from the number of frequencies that the exponents are divided by.
    """

    flip, shift = False, 0

    def __init__(self) -> None:
        super().__init__()
        self.projection = nn.Linear(2 * WIDTH, WIDTH)

    def frequencies(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.exp(-math.log(10000) * torch.arange(WIDTH, dtype=dtype) / (WIDTH - self.shift))

    def angles(self, timestep: Tensor) -> Tensor:
        return timestep[:, None].float() * self.frequencies()

    def forward(self, timestep: Tensor) -> Tensor:
        angles = self.angles(timestep)
        waves = (angles.cos(), angles.sin()) if self.flip else (angles.sin(), angles.cos())
        return functional.silu(self.projection(torch.cat(waves, dim=-1).to(self.projection.weight.dtype)))


class NarrowTimeEmbedding(TimeEmbedding):
    """Computes the angles in the dtype of the model."""

    def angles(self, timestep: Tensor) -> Tensor:
        dtype = self.projection.weight.dtype
        return timestep[:, None].to(dtype) * self.frequencies().to(dtype)


class TabledTimeEmbedding(TimeEmbedding):
    """Keeps its frequencies in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", TimeEmbedding.frequencies(self), persistent=False)

    def frequencies(self, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.get_buffer("table").float()


class ResidualBlock(nn.Module):
    """GroupNorm, convolution, the timestep added, and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, channels)
        self.conv = nn.Conv2d(channels, WIDTH, 3, padding=1)
        self.shortcut = nn.Conv2d(channels, WIDTH, 1)

    def forward(self, hidden: Tensor, time: Tensor) -> Tensor:
        return self.shortcut(hidden) + self.conv(functional.silu(self.norm(hidden))) + time[:, :, None, None]


class Upsample(nn.Module):
    """Doubles height and width by bilinear interpolation."""

    align_corners = False

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.interpolate(hidden, scale_factor=2, mode="bilinear", align_corners=self.align_corners)


class UNet(nn.Module):
    """Two blocks, a strided convolution, a block, upsampling, and two blocks that take the skips in reverse."""

    def __init__(self, time_class: type[TimeEmbedding] = TimeEmbedding) -> None:
        super().__init__()
        self.time_embed = time_class()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.down_blocks = nn.ModuleList(ResidualBlock(WIDTH) for _ in range(2))
        self.downsample = nn.Conv2d(WIDTH, WIDTH, 3, stride=2, padding=1)
        self.middle = ResidualBlock(WIDTH)
        self.upsample = Upsample()
        self.up_blocks = nn.ModuleList(ResidualBlock(2 * WIDTH) for _ in range(2))
        self.out = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def take(self, skips: list[Tensor]) -> Tensor:
        return skips.pop()

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        time, hidden, skips = self.time_embed(timestep), self.stem(sample), []
        for block in self.down_blocks:
            hidden = block(hidden, time)
            skips.append(hidden)
        hidden = self.upsample(self.middle(self.downsample(hidden), time))
        for block in self.up_blocks:
            hidden = block(torch.cat([hidden, self.take(skips)], dim=1), time)
        return self.out(hidden)


class UNetSkipsInOrder(UNet):
    """Takes the first skip first."""

    def take(self, skips: list[Tensor]) -> Tensor:
        return skips.pop(0)


class UNetWithoutSkips(UNet):
    """Gives the last blocks zeros for skips."""

    def take(self, skips: list[Tensor]) -> Tensor:
        return torch.zeros_like(skips.pop())


class Detector(nn.Module):
    """Boxes [B, A, 4] in pixels around anchors kept as a buffer, and the best class [B, A] of each as an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, WIDTH, 4, stride=4)
        self.deltas = nn.Linear(WIDTH, 4)
        self.classes = nn.Linear(WIDTH, 5)
        corners = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)) * 301.37 + 17.3
        self.register_buffer("anchors", torch.cat([corners, corners + 96.61], dim=1), persistent=False)

    def label(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        hidden = functional.relu(self.features(images)).flatten(2).mT
        deltas = self.deltas(hidden).float()
        return {"boxes": self.get_buffer("anchors").float() + deltas, "labels": self.label(self.classes(hidden))}


class OneBasedDetector(Detector):
    """Counts classes from 1, as data sets with a background class do."""

    def label(self, logits: Tensor) -> Tensor:
        return super().label(logits) + 1
