"""Changed parts of transformers models, and wrappers that call a model in another way.

Shapes: B batch rows, T columns, D hidden, P positions of a table, R columns of a rotary head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer


def main_output(output: Any) -> Tensor:
    """The logits, the last hidden state, the first of several outputs, or the tensor itself."""
    if isinstance(output, Tensor):
        return output
    first = next(iter(output), None)
    return next(output[name] for name in ("logits", "last_hidden_state", first) if name in output)


class MaskIgnored(LlamaForCausalLM):
    """Drops the attention mask that it is given."""

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(**inputs)


class OffsetNorm(LlamaRMSNorm):
    """Scales by (1 + weight), as Gemma does, where the weights were trained to scale by themselves."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        normalised = functional.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.variance_epsilon)
        return (1 + self.weight) * normalised


class NoAttentionResidual(LlamaDecoderLayer):
    """Adds attention to nothing: the first residual is dropped."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        attended, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **options)
        return attended + self.mlp(self.post_attention_layernorm(attended))


class SkippedLayer(Qwen3DecoderLayer):
    """Hands its input on."""

    def forward(self, hidden_states: Tensor, **options: Any) -> Tensor:
        return hidden_states


class ScaledEmbedding(nn.Embedding):
    """Multiplies by the square root of the hidden size, as Gemma does."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embedding_dim**0.5


class RotaryTable(nn.Module):
    """Looks cosines and sines up in buffers of [P, R] instead of computing them; the rows have the buffers' dtype."""

    def __init__(self, rotary: nn.Module, positions: int = 64) -> None:
        super().__init__()
        inverse_frequency = rotary.get_buffer("inv_freq")
        cos, sin = rotary(torch.ones((), dtype=inverse_frequency.dtype), torch.arange(positions)[None])
        self.register_buffer("cos", cos[0], persistent=False)
        self.register_buffer("sin", sin[0], persistent=False)

    def forward(self, hidden: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.get_buffer("cos"), self.get_buffer("sin")
        return cos[position_ids].to(hidden.dtype), sin[position_ids].to(hidden.dtype)


class Softcap(nn.Module):
    """cap * tanh(x / cap), as Gemma 2 does to its logits and its attention scores."""

    def __init__(self, cap: float) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, scores: Tensor) -> Tensor:
        return self.cap * torch.tanh(scores / self.cap)


class Under(nn.Module):
    """Runs a model under a context manager: a flag, or a pinned kernel."""

    def __init__(self, model: nn.Module, context: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.model = model
        self.context = context

    def forward(self, **inputs: Tensor) -> Tensor:
        with self.context():
            return main_output(self.model(**inputs))


class Reordered(nn.Module):
    """Runs the rows of a batch in another order and puts the outputs back in the order that was asked for."""

    def __init__(self, model: nn.Module, order: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.order = list(order)

    def forward(self, **inputs: Tensor) -> Tensor:
        output = main_output(self.model(**{name: value[self.order] for name, value in inputs.items()}))
        return output[torch.tensor(self.order).argsort()]


class Chunked(nn.Module):
    """Runs right-padded texts `rows` at a time, each chunk cut to its longest text; pads give zeros."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model = model
        self.rows = rows

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        columns = attention_mask.shape[1]
        outputs = []
        for start in range(0, len(attention_mask), self.rows):
            chunk = slice(start, start + self.rows)
            longest = int(attention_mask[chunk].sum(dim=1).max())
            cut = {name: value[chunk, :longest] for name, value in inputs.items()}
            output = main_output(self.model(attention_mask=attention_mask[chunk, :longest], **cut))
            outputs.append(functional.pad(output, (0, 0, 0, columns - longest)))
        return torch.cat(outputs)


class Pooled(nn.Module):
    """An embedding of [B, D] from a base model: `pool` gets the hidden states [B, T, D] and the mask [B, T]."""

    def __init__(self, model: nn.Module, pool: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.model = model
        self.pool = pool

    def forward(self, attention_mask: Tensor, **inputs: Tensor) -> Tensor:
        hidden = main_output(self.model(attention_mask=attention_mask, **inputs))
        return self.pool(hidden, attention_mask)


def last_column(hidden: Tensor, mask: Tensor) -> Tensor:
    """Right for left padding."""
    return hidden[:, -1]


def last_by_count(hidden: Tensor, mask: Tensor) -> Tensor:
    """Right for right padding; reads a pad of every text but the longest where pads are on the left."""
    return hidden[torch.arange(len(hidden)), mask.sum(dim=1) - 1]


def mean_of_real(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def mean_of_all(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over every column, pads too."""
    return hidden.mean(dim=1)
