"""Plain nets over sequences: an LSTM or GRU tagger, a GPT as nanoGPT's, a streaming net, int8 and LoRA by hand.

Shapes: B batch rows, T columns, D hidden, V vocabulary, O and I rows and columns of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.zoo.pairs import Inputs

WIDTH = 32
VOCABULARY = 60


def tokens(columns: int = 12, *, lengths: bool = False) -> Inputs:
    """Seeded ids [B, T]; `lengths` adds [B] numbers of real tokens, and zeros behind them."""
    ids = torch.randint(1, VOCABULARY, (3, columns), generator=torch.Generator().manual_seed(21))
    if not lengths:
        return {"tokens": ids}
    real = torch.tensor([columns, columns - 4, columns - 7])
    return {"tokens": ids * (torch.arange(columns) < real[:, None]), "lengths": real}


def frames(dtype: torch.dtype = torch.float32) -> Inputs:
    """Seeded frames [B, T, D]."""
    return {"frames": torch.randn(2, 10, WIDTH, generator=torch.Generator().manual_seed(22)).to(dtype)}


class Tagger(nn.Module):
    """Tags [B, T, 7] from a recurrent net in both directions; rows with lengths are packed."""

    def __init__(self, cell: type[nn.RNNBase] = nn.LSTM, *, bidirectional: bool = True) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.rnn = cell(WIDTH, WIDTH, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(WIDTH * (2 if bidirectional else 1), 7)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        embedded = self.embed(tokens)
        if lengths is None:
            return self.head(self.rnn(embedded)[0])
        packed = pack_padded_sequence(embedded, lengths, batch_first=True)
        hidden, _ = pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=tokens.shape[1])
        return self.head(hidden) * (tokens > 0)[..., None]


class UnpackedTagger(Tagger):
    """Runs over the pads too, which the backward direction reads first."""

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        return super().forward(tokens) * (tokens > 0)[..., None]


class CarryingTagger(Tagger):
    """Starts from the hidden state with which the call before ended."""

    state: tuple[Tensor, Tensor] | Tensor | None = None

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Tensor:
        hidden, self.state = self.rnn(self.embed(tokens), self.state)
        return self.head(hidden)


class Stream(nn.Module):
    """A streaming net: the mean of a call's hidden states is assigned to a buffer that the next call adds."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 8)
        self.register_buffer("carry", torch.zeros(WIDTH))

    def forward(self, frames: Tensor) -> Tensor:
        hidden = torch.tanh(self.encode(frames) + self.carry)
        self.carry = hidden.mean(dim=(0, 1))
        return self.decode(hidden)


class Attention(nn.Module):
    """Causal attention with one projection for query, key and value.

    Attributes:
        scale: what the scores are multiplied by.
    """

    heads = 4

    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.scale = (WIDTH // self.heads) ** -0.5

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.c_attn(hidden).chunk(3, dim=-1)
        return query, key, value

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return query * self.scale @ key.mT

    def visible(self, columns: int) -> Tensor:
        return torch.ones(columns, columns, dtype=torch.bool).tril()

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.project(hidden))
        scores = self.scores(query, key).masked_fill(~self.visible(hidden.shape[1]), -math.inf)
        return self.c_proj((scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2))


class SplitAttention(Attention):
    """Three projections instead of one."""

    def __init__(self, fused: Attention) -> None:
        super().__init__()
        self.c_proj, self.scale = fused.c_proj, fused.scale
        self.parts = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        for part, weight, bias in zip(
            self.parts, fused.c_attn.weight.chunk(3), fused.c_attn.bias.chunk(3), strict=True
        ):
            part.weight, part.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        del self.c_attn

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (part(hidden) for part in self.parts)
        return query, key, value


class LateScale(Attention):
    """Scales the scores after the product, which is the same function and overflows in float16."""

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        return (query @ key.mT) * self.scale


class StrictAttention(Attention):
    """Hides a token from itself as well, so that the first row has nothing to attend to and its softmax is NaN."""

    def visible(self, columns: int) -> Tensor:
        return super().visible(columns).tril(-1)


class RmsNorm(nn.Module):
    """x / sqrt(mean(x**2)), computed in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        return (wide * (wide.pow(2).mean(dim=-1, keepdim=True) + 1e-6).rsqrt()).to(hidden.dtype) * self.weight


class NarrowRmsNorm(RmsNorm):
    """Squares in the dtype of its input."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * (hidden.pow(2).mean(dim=-1, keepdim=True) + 1e-6).rsqrt() * self.weight


class SquaredRelu(nn.Module):
    """relu(x)**2 scaled to the width, in float32."""

    def forward(self, input: Tensor) -> Tensor:
        return (input.float().relu().pow(2) / 1024).to(input.dtype)


class NarrowSquaredRelu(SquaredRelu):
    """Squares in the dtype of its input before it scales."""

    def forward(self, input: Tensor) -> Tensor:
        return input.relu().pow(2) / 1024


class NarrowLayerNorm(nn.LayerNorm):
    """Takes the variance for mean(x**2) - mean(x)**2, in the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        mean = input.mean(dim=-1, keepdim=True)
        variance = (input.pow(2).mean(dim=-1, keepdim=True) - mean.pow(2)).clamp(min=0)
        return (input - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn: nn.Module = Attention()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.activation: nn.Module = nn.GELU()

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden))
        return hidden + self.c_proj(self.activation(self.c_fc(self.ln_2(hidden))))


class DroppingBlock(Block):
    """Calls functional.dropout, which drops unless it is told not to: in evaluation mode as well."""

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.dropout(super().forward(hidden), 0.1)


class Sinusoids(nn.Module):
    """Sinusoidal positions [T, D], computed in float32 and given in the dtype that is asked for."""

    def angles(self, columns: int, dtype: torch.dtype) -> Tensor:
        frequencies = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2, dtype=torch.float32) / (WIDTH // 2))
        return torch.arange(columns, dtype=torch.float32)[:, None] * frequencies

    def forward(self, columns: int, dtype: torch.dtype) -> Tensor:
        angles = self.angles(columns, dtype)
        return torch.cat([angles.sin(), angles.cos()], dim=-1).to(dtype)


class NarrowSinusoids(Sinusoids):
    """Counts positions in the dtype of the model: bfloat16 has no odd numbers above 256."""

    def angles(self, columns: int, dtype: torch.dtype) -> Tensor:
        ones = torch.ones(columns, dtype=dtype)
        positions = torch.arange(columns, dtype=torch.float32).to(ones.dtype)
        frequencies = torch.exp(-math.log(10000) * torch.arange(WIDTH // 2, dtype=torch.float32) / (WIDTH // 2))
        return positions[:, None] * frequencies.to(dtype)


class SinusoidsFromOne(Sinusoids):
    """Counts positions from one."""

    def forward(self, columns: int, dtype: torch.dtype) -> Tensor:
        return super().forward(columns + 1, dtype)[1:]


class TabledSinusoids(Sinusoids):
    """Keeps the whole table in a float32 buffer."""

    def __init__(self, rows: int = 64) -> None:
        super().__init__()
        self.register_buffer("table", Sinusoids.forward(self, rows, torch.float32), persistent=False)

    def forward(self, columns: int, dtype: torch.dtype) -> Tensor:
        return self.get_buffer("table")[:columns].to(dtype)


class Gpt(nn.Module):
    """Logits [B, T, V] of a GPT of two blocks.

    Attributes:
        fill: what the logits of the first four tokens are set to, which are reserved; none where it is None.
    """

    fill: float | None = None

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, WIDTH)
        self.positions: nn.Module = Sinusoids()
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.ln_f: nn.Module = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        embedded = self.wte(tokens)
        hidden = embedded + self.positions(tokens.shape[1], embedded.dtype)
        for block in self.blocks:
            hidden = block(hidden)
        logits = self.lm_head(self.ln_f(hidden))
        if self.fill is None:
            return logits
        return torch.cat([torch.full_like(logits[..., :4], self.fill), logits[..., 4:]], dim=-1)


class Int8Linear(nn.Module):
    """A linear layer whose weight [O, I] is kept as int8, with a scale and a zero point a row."""

    def __init__(self, linear: nn.Linear, *, symmetric: bool = True) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
        scale = weight.abs().amax(dim=1, keepdim=True) / 127 if symmetric else (high - low) / 255
        zero = torch.zeros_like(low) if symmetric else (-128 - low / scale).round()
        self.register_buffer("weight_int8", (weight / scale + zero).round().clamp(-128, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero.to(torch.int16))
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        whole = self.get_buffer("weight_int8").to(torch.int16) - self.get_buffer("zero_point")
        weight = whole.float() * self.get_buffer("scale").float()
        return functional.linear(input, weight.to(input.dtype), self.bias)


class LoraLinear(nn.Module):
    """A linear layer and, beside it, a scaled product of two narrow ones."""

    def __init__(self, base: nn.Linear, *, scale: float = 2.0) -> None:
        super().__init__()
        self.base, self.scale = base, scale
        self.down, self.up = nn.Linear(base.in_features, 4, bias=False), nn.Linear(4, base.out_features, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        return self.base(input) + self.scale * self.up(self.down(input))

    def merged(self, *, scale: float | None = None, times: int = 1) -> nn.Linear:
        """The base with the product added to its weight; the layer itself is spent."""
        with torch.no_grad():
            delta = (self.scale if scale is None else scale) * self.up.weight.float() @ self.down.weight.float()
            self.base.weight.copy_(self.base.weight.float() + times * delta)
        return self.base


def replace_linears(model: nn.Module, make: Callable[[nn.Linear], nn.Module], *, name: str = "") -> None:
    """Put something else in the place of every linear layer whose name ends in `name`."""
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and path.endswith(name):
            parent, _, attribute = path.rpartition(".")
            setattr(model.get_submodule(parent), attribute, make(module))
