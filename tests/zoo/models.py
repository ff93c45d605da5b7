"""Tiny transformers models from folders that are really saved and loaded, and texts laid out for them.

Shapes: B batch rows, T columns (tokens with pads), N real tokens, D hidden.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from tests.zoo.pairs import Inputs

VOCABULARY = 300
TEXT_LENGTHS = (11, 7, 4)
HEAD_DIM = 32

# Weights that are this lively give attention that is not uniform and logits that vary.
_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
    "rms_norm_eps": 1e-6,
    "pad_token_id": 0,
}
_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "pad_token_id": 0,
}
_CLASSES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaForCausalLM, LlamaConfig, _DECODER),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, _DECODER),
    "bert": (BertModel, BertConfig, _ENCODER),
}
_FOLDERS = tempfile.TemporaryDirectory(prefix="zoo-")


@functools.cache
def checkpoint(architecture: str, saved_dtype: torch.dtype = torch.float32, *, tied: bool = False) -> Path:
    """A folder of seeded safetensors. Norm weights and biases are spread, so that none of them is neutral."""
    model_class, config_class, geometry = _CLASSES[architecture]
    torch.manual_seed(0)
    options = {"add_pooling_layer": False} if architecture == "bert" else {}
    model = model_class(config_class(**geometry, tie_word_embeddings=tied), **options)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
    folder = Path(_FOLDERS.name) / f"{architecture}-{saved_dtype}-{tied}".replace("torch.", "")
    model.to(saved_dtype).save_pretrained(folder)
    return folder


def load(
    architecture: str,
    dtype: torch.dtype,
    attention: str = "eager",
    *,
    saved_dtype: torch.dtype = torch.float32,
    tied: bool = False,
    **options: Any,
) -> Any:
    """Load a checkpoint the way that keeps float32 tables, without the cache; `options` go to `from_pretrained`."""
    options = {"use_cache": False, **options} if architecture != "bert" else {"add_pooling_layer": False, **options}
    folder = checkpoint(architecture, saved_dtype, tied=tied)
    model_class = _CLASSES[architecture][0]
    return model_class.from_pretrained(folder, dtype=dtype, attn_implementation=attention, **options).eval()


def texts() -> list[Tensor]:
    """Three seeded texts of different lengths; no token is the pad token."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(10, VOCABULARY, (length,), generator=generator) for length in TEXT_LENGTHS]


def padded(side: Literal["left", "right"] = "right", *, columns: int = 11, positions: bool = True) -> Inputs:
    """The texts as B rows of `columns`, with a mask; positions count from 0 at each text's first token."""
    ids, mask, position_ids = (torch.zeros(len(TEXT_LENGTHS), columns, dtype=torch.long) for _ in range(3))
    for row, text in enumerate(texts()):
        start = columns - len(text) if side == "left" else 0
        real = slice(start, start + len(text))
        ids[row, real] = text
        mask[row, real] = 1
        position_ids[row, real] = torch.arange(len(text))
    inputs = {"input_ids": ids, "attention_mask": mask}
    return inputs | {"position_ids": position_ids} if positions else inputs


def packed(*, positions: bool = True, mask: bool = False) -> Inputs:
    """The texts in one row of N; `mask` adds an attention mask of ones."""
    row = torch.cat(texts())[None]
    inputs = {"input_ids": row}
    if positions:
        inputs["position_ids"] = torch.cat([torch.arange(length) for length in TEXT_LENGTHS])[None]
    if mask:
        inputs["attention_mask"] = torch.ones_like(row)
    return inputs


def one_length() -> Inputs:
    """Two texts of 12 tokens: nothing to pad, and no mask."""
    generator = torch.Generator().manual_seed(2)
    return {"input_ids": torch.randint(10, VOCABULARY, (2, 12), generator=generator)}


def without(inputs: Inputs, *names: str) -> Inputs:
    """Inputs less some of them."""
    return {name: value for name, value in inputs.items() if name not in names}


def swap_blocks(weight: Tensor, first: int, second: int, *, dim: int = 0, size: int = HEAD_DIM) -> None:
    """Swap two heads of a projection in place: `size` rows (or columns, `dim=1`) each."""
    order = list(range(weight.shape[dim] // size))
    order[first], order[second] = order[second], order[first]
    index = torch.cat([torch.arange(head * size, (head + 1) * size) for head in order])
    weight.copy_(weight.index_select(dim, index))


def interleave_rotary_rows(weight: Tensor) -> None:
    """Order the rows of each head in place by pairs (0 16 1 17 ..), as Llama's own files do, for a model of halves."""
    heads = weight.view(-1, 2, HEAD_DIM // 2, weight.shape[1])
    weight.copy_(heads.transpose(1, 2).reshape(weight.shape).clone())


def untie(model: Any) -> None:
    """Give a tied head a parameter of its own with the same values."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())


def int8_round_trip(weight: Tensor) -> None:
    """Leave in place what symmetric int8 quantisation with one scale per matrix gives back."""
    scale = weight.abs().max().float() / 127
    weight.copy_((weight.float() / scale).round().clamp(-127, 127) * scale)


def add_low_rank(weight: Tensor, *, scale: float) -> None:
    """Merge a seeded rank-4 delta into a weight in place, as merging a LoRA adapter does."""
    generator = torch.Generator().manual_seed(3)
    up = torch.randn(weight.shape[0], 4, generator=generator)
    down = torch.randn(4, weight.shape[1], generator=generator)
    weight += (scale * up @ down).to(weight.dtype)


def set_class(module: nn.Module, changed: type[nn.Module]) -> None:
    """Give a module another forward and keep its state and its name."""
    module.__class__ = changed
