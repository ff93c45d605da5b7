"""Tiny seeded Llamas, really saved and really loaded, and their inputs in several layouts."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

LENGTHS = (6, 10)
GEOMETRY: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
_FOLDER = tempfile.TemporaryDirectory(prefix="small-llama-")


@functools.cache
def folder() -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**GEOMETRY)).save_pretrained(_FOLDER.name)
    return Path(_FOLDER.name)


def llama(dtype: torch.dtype = torch.float32, attention: str = "eager", **options: Any) -> Any:
    model = LlamaForCausalLM.from_pretrained(folder(), dtype=dtype, attn_implementation=attention, **options)
    return model.eval()


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(1, 128, (length,), generator=generator) for length in LENGTHS]


def padded_left() -> dict[str, Tensor]:
    T = max(LENGTHS)
    ids = torch.stack([torch.cat([torch.zeros(T - len(text), dtype=torch.int64), text]) for text in texts()])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


def explicit(inputs: dict[str, Tensor], *, shift: int = 0) -> dict[str, Tensor]:
    return {**inputs, "position_ids": (inputs["attention_mask"].cumsum(1) - 1).clamp(min=0) + shift}


def packed() -> dict[str, Any]:
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    return {"input_ids": torch.cat(texts())[None], "position_ids": positions[None]}


class Attention(nn.Module):
    """Causal attention written out, with a residual. A model without a config."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(16, 16, bias=False) for _ in range(4))
        self.scale = 0.25

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(hidden), self.k(hidden), self.v(hidden)

    def forward(self, hidden: Tensor) -> Tensor:
        query, key, value = self.project(hidden)
        future = torch.ones(hidden.shape[1], hidden.shape[1], dtype=torch.bool).triu(1)
        scores = (query @ key.mT * self.scale).masked_fill(future, -torch.inf)
        return hidden + self.o(scores.softmax(-1) @ value)


class FusedAttention(Attention):
    """The three projections as one matrix."""

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48, bias=False)
        with torch.no_grad():
            self.qkv.weight.copy_(torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]))
        del self.q, self.k, self.v
        self.o = attention.o

    def project(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = self.qkv(hidden).chunk(3, dim=-1)
        return query, key, value


def attention(seed: int = 0) -> Attention:
    torch.manual_seed(seed)
    return Attention().eval()


def hidden(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"hidden": torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2)).bfloat16().to(dtype)}
