"""An operator alone, as a model: attention, a norm or a product on operands that are its weights. It reads one token.

Shapes: H heads, N rows, D width, K inner width, F all features of the result.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

MODEL_TYPE = "sweeper_operator"
_OPERANDS: dict[str, tuple[str, ...]] = {
    "attention": ("query_HND", "key_HND", "value_HND"),
    "norm": ("rows_ND", "weight_D"),
    "matmul": ("left_NK", "right_KD"),
    "cast_add": ("left_NK", "right_KD", "bias_D"),
}


@strict
class OperatorConfig(PreTrainedConfig):
    """What is computed, and of what.

    Attributes:
        operation: `attention` (not causal), `norm` (RMSNorm), `matmul`, `cast_add` (a product, rounded to bfloat16, and
            a bias in its own dtype).
        rows, width, heads, inner: sizes of the operands.
        entries: `normal`; `outliers`: N(0, 1), and of each thousandth entry N(0, 100) on top; `linspace`: from -1000 to
            1000, row after row.
        implementation: of a norm: `llama` rounds before it multiplies by the weight, `torch` behind that.
        first: so many rows of the left operand are multiplied; 0: all. The result's first row is what comes out where
            `only_first_row`.
    """

    model_type = MODEL_TYPE

    operation: str = "attention"
    vocab_size: int = 2
    rows: int = 512
    width: int = 64
    heads: int = 4
    inner: int = 64
    entries: str = "normal"
    implementation: str = "llama"
    first: int = 0
    only_first_row: bool = False
    hidden_size: int = 1
    num_hidden_layers: int = 1


class Operation(nn.Module):
    """One operation on its own weights; its result lies behind one token, [1, 1, F]."""

    is_causal = False

    def __init__(self, config: Any) -> None:
        super().__init__()
        if config.operation not in _OPERANDS:
            raise ValueError(f"operation is one of {', '.join(_OPERANDS)} (given: {config.operation})")
        self.config = config
        for name in _OPERANDS[config.operation]:
            setattr(self, name, nn.Parameter(_drawn(name, config)))

    def forward(self) -> Tensor:
        result: Tensor = getattr(self, f"_{self.config.operation}")()
        return result.reshape(1, 1, -1)

    def _attention(self) -> Tensor:
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, _written_out)
        operands = [self.get_parameter(name)[None] for name in _OPERANDS["attention"]]
        result: Tensor = attend(self, *operands, None, scaling=self.config.width**-0.5, dropout=0.0, is_causal=False)[0]
        return result

    def _norm(self) -> Tensor:
        rows_ND, weight_D = map(self.get_parameter, _OPERANDS["norm"])
        if self.config.implementation == "torch":
            return functional.rms_norm(rows_ND, rows_ND.shape[-1:], weight_D, 1e-6)
        single_ND = rows_ND.to(torch.promote_types(rows_ND.dtype, torch.float32))
        normed_ND = single_ND * torch.rsqrt(single_ND.pow(2).mean(-1, keepdim=True) + 1e-6)
        return weight_D * normed_ND.to(rows_ND.dtype)

    def _matmul(self) -> Tensor:
        left_NK, right_KD = map(self.get_parameter, _OPERANDS["matmul"])
        product_ND = (left_NK[: self.config.first] if self.config.first else left_NK) @ right_KD
        return product_ND[:1] if self.config.only_first_row else product_ND

    def _cast_add(self) -> Tensor:
        left_NK, right_KD, bias_D = map(self.get_parameter, _OPERANDS["cast_add"])
        # the sum promotes, as in the source: a cast back that is written out may be dropped with the cast before it
        return (left_NK @ right_KD).to(torch.bfloat16) + bias_D


class Operator(PreTrainedModel):
    """An operation, whatever the model is given to read."""

    config_class = OperatorConfig
    base_model_prefix = "operator"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.operation = Operation(config)  # first, so that its operands are what a seed draws first
        self.embed_tokens = nn.Embedding(config.vocab_size, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Operands are drawn as they are made."""

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, position_ids: Tensor | None = None
    ) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.operation())


def _written_out(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Any, scaling: float, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention as the formula has it, all of it in the operands' dtype."""
    weights = torch.softmax(query @ key.transpose(-2, -1) * scaling, dim=-1)
    return (weights @ value).transpose(1, 2), weights


def _drawn(name: str, config: Any) -> Tensor:
    sizes = {"H": config.heads, "N": config.rows, "D": config.width, "K": config.inner}
    shape = [sizes[letter] for letter in name.rpartition("_")[2]]
    if config.entries == "linspace":
        return torch.linspace(-1000, 1000, torch.Size(shape).numel()).reshape(shape)
    drawn = torch.randn(shape)
    if config.entries == "outliers":
        drawn = drawn + 10 * torch.randn(shape) * (torch.rand(shape) < 0.001)
    return drawn


def register() -> None:
    """Makes transformers know the architecture; again does nothing."""
    AutoConfig.register(MODEL_TYPE, OperatorConfig, exist_ok=True)
    AutoModel.register(OperatorConfig, Operator, exist_ok=True)
