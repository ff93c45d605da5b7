"""Tiny language models of many families, from folders that are really saved and loaded, and texts laid out for them.

Shapes: B batch rows, T columns (tokens with pads), D hidden.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from torch import Tensor

from tests.zoo.models import VOCABULARY, padded
from tests.zoo.pairs import Inputs

HIDDEN = 64
HEAD_DIM = 16

_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED = _COMMON | {"num_key_value_heads": 2, "rms_norm_eps": 1e-6, "tie_word_embeddings": False}
_HEADED = _GROUPED | {"head_dim": HEAD_DIM}
_WINDOWED = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}

# The class, its config's class, and the arguments of the config.
_FAMILIES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _HEADED),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", _HEADED),
    "gemma": ("GemmaForCausalLM", "GemmaConfig", _HEADED),
    "gemma2": (
        "Gemma2ForCausalLM",
        "Gemma2Config",
        _HEADED
        | _WINDOWED
        | {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 5.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        "Gemma3TextConfig",
        _HEADED | _WINDOWED | {"query_pre_attn_scalar": 16},
    ),
    "gptneox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _COMMON | {"hidden_dropout": 0.0, "attention_dropout": 0.0}),
    "gpt2": (
        "GPT2LMHeadModel",
        "GPT2Config",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": 64,
            "initializer_range": 0.1,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    ),
    "opt": (
        "OPTForCausalLM",
        "OPTConfig",
        _COMMON | {"ffn_dim": 96, "word_embed_proj_dim": HIDDEN, "init_std": 0.1},
    ),
    # 12 heads: the slopes of a number of heads that is no power of two are no powers of two either.
    "bloom": (
        "BloomForCausalLM",
        "BloomConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 96,
            "n_layer": 2,
            "n_head": 12,
            "initializer_range": 0.1,
            "pad_token_id": 0,
        },
    ),
    "falcon": ("FalconForCausalLM", "FalconConfig", _COMMON | {"multi_query": True, "parallel_attn": True}),
    "mixtral": (
        "MixtralForCausalLM",
        "MixtralConfig",
        _GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None},
    ),
    "qwen2moe": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        _GROUPED
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "state_size": 8,
            "time_step_rank": 4,
            "initializer_range": 0.1,
            "pad_token_id": 0,
        },
    ),
    "bert": ("BertModel", "BertConfig", _COMMON),
    "albert": ("AlbertModel", "AlbertConfig", _COMMON | {"embedding_size": 32}),
    "roberta": ("RobertaForMaskedLM", "RobertaConfig", _COMMON | {"type_vocab_size": 1}),
    "distilbert": (
        "DistilBertModel",
        "DistilBertConfig",
        {
            "vocab_size": VOCABULARY,
            "dim": HIDDEN,
            "hidden_dim": 96,
            "n_layers": 2,
            "n_heads": 4,
            "max_position_embeddings": 64,
            "initializer_range": 0.1,
            "pad_token_id": 0,
        },
    ),
    "modernbert": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        _COMMON
        | {
            "layer_types": ["full_attention", "sliding_attention"],
            "local_attention": 6,
            "cls_token_id": 1,
            "sep_token_id": 2,
        },
    ),
    "t5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": HEAD_DIM,
            "d_ff": 96,
            "num_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 10,
            "pad_token_id": 0,
            "eos_token_id": 1,
            "decoder_start_token_id": 0,
        },
    ),
    "bart": (
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 96,
            "decoder_ffn_dim": 96,
            "max_position_embeddings": 64,
            "init_std": 0.1,
            "scale_embedding": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 2,
            "forced_eos_token_id": None,
        },
    ),
}
_ENCODERS = {"bert", "albert", "roberta", "distilbert", "modernbert"}
_FOLDERS = tempfile.TemporaryDirectory(prefix="zoo-language-")


@functools.cache
def checkpoint(family: str, saved_dtype: torch.dtype = torch.float32) -> Path:
    """A folder of seeded safetensors. Norm weights and biases are spread, so that none of them is neutral."""
    class_name, config_name, geometry = _FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, class_name)(getattr(transformers, config_name)(**geometry))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn_like(parameter)
        for name, buffer in model.named_buffers():
            if name == "final_logits_bias":
                buffer += torch.randn_like(buffer)
    folder = Path(_FOLDERS.name) / f"{family}-{saved_dtype}".replace("torch.", "")
    model.to(saved_dtype).save_pretrained(folder)
    return folder


def load(
    family: str,
    dtype: torch.dtype = torch.float32,
    attention: str = "eager",
    *,
    saved_dtype: torch.dtype = torch.float32,
    **options: Any,
) -> Any:
    """Load a checkpoint the way that keeps float32 tables, without the cache; `options` go to `from_pretrained`."""
    if family not in _ENCODERS:
        options = {"use_cache": False} | options
    if family != "mamba":
        options["attn_implementation"] = attention
    if family == "qwen2moe":
        options = {"experts_implementation": "eager"} | options  # Mixtral keeps the default, a grouped kernel
    model_class = getattr(transformers, _FAMILIES[family][0])
    return model_class.from_pretrained(checkpoint(family, saved_dtype), dtype=dtype, **options).eval()


def two_sided(
    *, decoder: Literal["left", "right"] | None = None, encoder: Literal["left", "right"] = "right", columns: int = 11
) -> Inputs:
    """Texts for an encoder, padded, and as many for a decoder: 9 columns without pads, or padded with a mask."""
    inputs = padded(encoder, columns=columns, positions=False)
    ids = decoder_ids()
    inputs["decoder_input_ids"] = ids
    if decoder is not None:
        mask = torch.ones_like(ids)
        for row, pads in enumerate((0, 3, 5)):
            mask[row, slice(0, pads) if decoder == "left" else slice(ids.shape[1] - pads, None)] = 0
        inputs["decoder_input_ids"] = ids * mask
        inputs["decoder_attention_mask"] = mask
    return inputs


def decoder_ids(columns: int = 9) -> Tensor:
    """Seeded decoder tokens [3, T]; none is the pad token."""
    return torch.randint(10, VOCABULARY, (3, columns), generator=torch.Generator().manual_seed(7))


def far(first: int) -> Inputs:
    """Two texts of 12 tokens whose positions begin at `first`, as at the end of a long context."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(10, VOCABULARY, (2, 12), generator=generator)
    return {"input_ids": ids, "position_ids": torch.arange(first, first + 12).expand(2, -1).clone()}


def embedded(model: Any, inputs: Inputs) -> Inputs:
    """Inputs whose token ids are looked up: `inputs_embeds` in the model's dtype."""
    rest = {name: value for name, value in inputs.items() if name != "input_ids"}
    with torch.no_grad():
        return {"inputs_embeds": model.get_input_embeddings()(inputs["input_ids"]).detach()} | rest
