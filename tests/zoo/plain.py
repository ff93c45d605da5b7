"""Small models that are not transformers' own: they take keyword tensors and know no config.

Shapes: B batch rows, T columns, D hidden, H heads, K key-value heads, R head dimension, E experts.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.pairs import Inputs

HIDDEN = 64


def seeded(module_class: type[nn.Module], dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A seeded module whose weights bfloat16 holds exactly, so that a change of dtype changes none of them."""
    torch.manual_seed(0)
    return module_class(**options).to(torch.bfloat16).to(dtype).eval()


def hidden(dtype: torch.dtype = torch.float32, *, batch: int = 3, columns: int = 10) -> Inputs:
    """Seeded hidden states [B, T, D] that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(4)
    return {"hidden": torch.randn(batch, columns, HIDDEN, generator=generator).bfloat16().to(dtype)}


def images(dtype: torch.dtype = torch.float32) -> Inputs:
    """Seeded images [B, 3, 16, 16] that bfloat16 holds exactly."""
    generator = torch.Generator().manual_seed(5)
    return {"pixels": torch.randn(3, 3, 16, 16, generator=generator).bfloat16().to(dtype)}


class Mlp(nn.Module):
    """Two residual blocks of norm, up, activation, down."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(MlpBlock() for _ in range(2))
        self.head = nn.Linear(HIDDEN, 2 * HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        for block in self.blocks:
            hidden = block(hidden)
        return self.head(hidden)


class MlpBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.up = nn.Linear(HIDDEN, HIDDEN)
        self.activation: nn.Module = nn.GELU()
        self.down = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(self.activation(self.up(self.norm(hidden))))


class MlpBlockWithoutResidual(MlpBlock):
    def forward(self, hidden: Tensor) -> Tensor:
        return self.down(self.activation(self.up(self.norm(hidden))))


class SplitLinear(nn.Module):
    """A linear layer as the sum of two halves of its input, as tensor parallelism over two devices does."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, input: Tensor) -> Tensor:
        half = input.shape[-1] // 2
        first = functional.linear(input[..., :half], self.weight[:, :half], self.bias)
        return first + functional.linear(input[..., half:], self.weight[:, half:])


class ConvNet(nn.Module):
    """Two convolutions with a skip around the second, and a linear head over the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv = nn.Conv2d(32, 32, 3, padding=1)
        self.norm = nn.GroupNorm(4, 32)
        self.head = nn.Linear(32, 20)

    def forward(self, pixels: Tensor) -> Tensor:
        features = functional.relu(self.stem(pixels))
        features = features + functional.relu(self.norm(self.conv(features)))
        return self.head(features.mean(dim=(2, 3)))


class Attention(nn.Module):
    """Causal attention with grouped key-value heads, written out, with a residual.

    Attributes:
        scale: what the scores are multiplied by.
        softcap: bounds the scores; `nn.Identity` where they are not bounded.
        softmax: how the scores [B, H, T, T] become weights.
    """

    heads, kv_heads, head_dim = 4, 2, 16

    def __init__(self) -> None:
        super().__init__()
        self.scale = self.head_dim**-0.5
        self.q = nn.Linear(HIDDEN, self.heads * self.head_dim)
        self.k = nn.Linear(HIDDEN, self.kv_heads * self.head_dim)
        self.v = nn.Linear(HIDDEN, self.kv_heads * self.head_dim)
        self.softcap: nn.Module = nn.Identity()
        self.softmax: nn.Module = nn.Softmax(dim=-1)
        self.o = nn.Linear(HIDDEN, HIDDEN)
        with torch.no_grad():
            for linear in (self.q, self.k):
                linear.weight *= 4  # scores of about 1 to 3, so that attention is not uniform

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(hidden), self.k(hidden), self.v(hidden)

    def repeat_kv(self, states: Tensor) -> Tensor:
        return states.repeat_interleave(self.heads // self.kv_heads, dim=1)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(-1, -2) * self.scale

    def forward(self, hidden: Tensor) -> Tensor:
        batch, columns, _ = hidden.shape
        query, key, value = (
            states.view(batch, columns, -1, self.head_dim).transpose(1, 2) for states in self.project(hidden)
        )
        scores = self.softcap(self.scores(query, self.repeat_kv(key)))
        future = torch.ones(columns, columns, dtype=torch.bool).triu(1)
        weights = self.softmax(scores.masked_fill(future, -math.inf))
        attended = weights @ self.repeat_kv(value)
        return hidden + self.o(attended.transpose(1, 2).reshape(batch, columns, HIDDEN))


class TiledHeads(Attention):
    """Repeats key-value heads in the wrong order: 0 1 0 1 where 0 0 1 1 was meant."""

    def repeat_kv(self, states: Tensor) -> Tensor:
        return states.repeat(1, self.heads // self.kv_heads, 1, 1)


class HalvedScores(Attention):
    """Scores with an extra multiplication by 0.5."""

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return super().scores(query, key) * 0.5


class ScoresOverTwo(Attention):
    """The scores of `HalvedScores` with a division by 2 instead, which is the same number."""

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return super().scores(query, key) / 2


class PlainSoftmax(nn.Module):
    """Softmax without subtracting the maximum first."""

    def forward(self, scores: Tensor) -> Tensor:
        exponentials = scores.exp()
        return exponentials / exponentials.sum(dim=-1, keepdim=True)


class FusedAttention(Attention):
    """One projection for query, key and value."""

    def __init__(self, separate: Attention) -> None:
        super().__init__()
        parts = (separate.q, separate.k, separate.v)
        self.sizes = [part.out_features for part in parts]
        self.qkv = nn.Linear(HIDDEN, sum(self.sizes), dtype=separate.q.weight.dtype)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
            self.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        self.o = deepcopy(separate.o)
        del self.q, self.k, self.v

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(hidden).split(self.sizes, dim=-1)
        return query, key, value


class Moe(nn.Module):
    """A mixture of 8 experts of which each token takes the 2 that its router likes most: a discontinuous function."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.router = nn.Linear(HIDDEN, 8)
        self.experts = nn.ModuleList(nn.Linear(HIDDEN, HIDDEN) for _ in range(8))
        with torch.no_grad():
            for expert in self.experts:
                expert.get_parameter("weight").mul_(6)  # experts that disagree loudly

    def forward(self, hidden: Tensor) -> Tensor:
        mixed = torch.tanh(self.mix(hidden))
        weights, chosen = self.router(mixed).softmax(dim=-1).topk(2, dim=-1)  # [B, T, 2] each
        outputs = torch.stack([expert(mixed) for expert in self.experts], dim=-2)  # [B, T, E, D]
        picked = outputs.gather(-2, chosen[..., None].expand(*chosen.shape, HIDDEN))
        return hidden + (weights[..., None] * picked).sum(dim=-2)
