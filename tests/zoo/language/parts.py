"""Changed parts of language models, and wrappers that call a model in another way.

Shapes: B batch rows, T columns, D hidden, H heads.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    BartForConditionalGeneration,
    BertModel,
    BloomModel,
    GPT2LMHeadModel,
    ModernBertForMaskedLM,
    T5ForConditionalGeneration,
)
from transformers.models.bart.modeling_bart import BartAttention
from transformers.models.bert.modeling_bert import BertEmbeddings, BertSelfOutput
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.mixtral.modeling_mixtral import MixtralAttention, MixtralTopKRouter
from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention, Qwen2RotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm
from transformers.models.t5.modeling_t5 import T5Attention, T5LayerNorm

# Masks


class EncoderMaskOnDecoder(BartForConditionalGeneration):
    """Hands the encoder's mask to the decoder as well."""

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(attention_mask=attention_mask, decoder_attention_mask=attention_mask, **inputs)


class EncoderMaskOnT5Decoder(T5ForConditionalGeneration):
    """Hands the encoder's mask to the decoder as well."""

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(attention_mask=attention_mask, decoder_attention_mask=attention_mask, **inputs)


class DecoderMaskIgnored(BartForConditionalGeneration):
    """Drops the decoder's mask."""

    def forward(self, decoder_attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(**inputs)


class T5DecoderMaskIgnored(T5ForConditionalGeneration):
    """Drops the decoder's mask."""

    def forward(self, decoder_attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(**inputs)


class Gpt2MaskIgnored(GPT2LMHeadModel):
    """Drops the mask."""

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(**inputs)


class ModernBertMaskIgnored(ModernBertForMaskedLM):
    """Drops the mask."""

    def forward(self, attention_mask: Tensor, **inputs: Any) -> Any:
        return super().forward(**inputs)


class TokenTypesIgnored(BertModel):
    """Drops the token types."""

    def forward(self, token_type_ids: Tensor, **inputs: Any) -> Any:
        return super().forward(**inputs)


class UnmaskedQwen2Attention(Qwen2Attention):
    """Attends to everything, the future too."""

    def forward(self, *args: Any, attention_mask: Tensor, **options: Any) -> Any:
        return super().forward(*args, attention_mask=torch.zeros_like(attention_mask), **options)


class UnmaskedMixtralAttention(MixtralAttention):
    """Attends to everything, the future too."""

    def forward(self, *args: Any, attention_mask: Tensor, **options: Any) -> Any:
        return super().forward(*args, attention_mask=torch.zeros_like(attention_mask), **options)


class UnmaskedBartAttention(BartAttention):
    """Attends to everything, pads too."""

    def forward(self, *args: Any, attention_mask: Tensor, **options: Any) -> Any:
        return super().forward(*args, attention_mask=torch.zeros_like(attention_mask), **options)


class UnmaskedT5Attention(T5Attention):
    """Attends to everything, pads too."""

    def forward(self, *args: Any, mask: Tensor, **options: Any) -> Any:
        return super().forward(*args, mask=torch.zeros_like(mask), **options)


class InfiniteMaskAttention(Qwen2Attention):
    """Masks with minus infinity, so that a row with nothing to attend to is not a number."""

    def forward(self, *args: Any, attention_mask: Tensor, **options: Any) -> Any:
        infinite = torch.where(attention_mask < 0, -math.inf, 0.0).to(attention_mask.dtype)
        return super().forward(*args, attention_mask=infinite, **options)


class OwnStatesBartAttention(BartAttention):
    """Cross-attention whose keys and values are the decoder's own states."""

    def forward(self, hidden_states: Tensor, key_value_states: Tensor, **options: Any) -> Any:
        return super().forward(hidden_states, **options | {"attention_mask": None})


class OwnStatesT5Attention(T5Attention):
    """Cross-attention whose keys and values are the decoder's own states."""

    def forward(self, hidden_states: Tensor, key_value_states: Tensor, **options: Any) -> Any:
        options |= {"mask": None, "position_bias": None}
        return super().forward(hidden_states, key_value_states=hidden_states, **options)


# Positions


class HalfAngles(LlamaRotaryEmbedding):
    """Computes its angles in the model's dtype, in which far positions collide."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].to(x.dtype) * self.get_buffer("inv_freq").to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class HalfAnglesQwen2(Qwen2RotaryEmbedding):
    """Computes its angles in the model's dtype, in which far positions collide."""

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].to(x.dtype) * self.get_buffer("inv_freq").to(x.dtype)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()


class InterleavedTable(nn.Module):
    """Lays cosines and sines out in pairs (0 0 1 1 ..) for a model that rotates halves (0 1 .. 0 1 ..)."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.register_buffer("inv_freq", rotary.get_buffer("inv_freq"), persistent=False)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None].float() * self.get_buffer("inv_freq")).repeat_interleave(2, dim=-1)
        return angles.cos().to(x.dtype), angles.sin().to(x.dtype)


class RoundedAlibi(BloomModel):
    """Keeps the slopes times positions in bfloat16."""

    def build_alibi_tensor(self, attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        return super().build_alibi_tensor(attention_mask, num_heads, torch.bfloat16).to(dtype)


class GeometricAlibi(BloomModel):
    """One geometric series of slopes for 12 heads, where 8 of one series and 4 of another were trained."""

    def build_alibi_tensor(self, attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        slopes = 2.0 ** (-8.0 * torch.arange(1, num_heads + 1) / num_heads)
        positions = ((attention_mask.cumsum(dim=-1) - 1) * attention_mask)[:, None, :]
        return (slopes[:, None] * positions).reshape(-1, 1, attention_mask.shape[1]).to(dtype)


class ColumnAlibi(BloomModel):
    """Counts columns and not tokens: every score of a row moves by the same, which softmax does not see."""

    def build_alibi_tensor(self, attention_mask: Tensor, num_heads: int, dtype: torch.dtype) -> Tensor:
        return super().build_alibi_tensor(torch.ones_like(attention_mask), num_heads, dtype)


# Norms and activations


class NormWithoutOffset(GemmaRMSNorm):
    """Scales by the weight alone, where the weights were trained to be added to one."""

    def forward(self, x: Tensor) -> Tensor:
        return (self._norm(x.float()) * self.weight.float()).type_as(x)


class T5OffsetNorm(T5LayerNorm):
    """Scales by (1 + weight), where the weights were trained to scale by themselves."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        normalised = functional.rms_norm(hidden_states, hidden_states.shape[-1:], eps=self.variance_epsilon)
        return (1 + self.weight) * normalised


class LouderInBfloat16(GemmaRMSNorm):
    """A branch that only bfloat16 takes scales by a quarter more."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.25 if x.dtype == torch.bfloat16 else 1.0)


class QuickInHalf(nn.Module):
    """The activation that it wraps, but its sigmoid approximation where float16 comes in, as fused kernels do."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.activation = activation

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * torch.sigmoid(1.702 * hidden) if hidden.dtype == torch.float16 else self.activation(hidden)


class NativeNorm(Qwen3RMSNorm):
    """Squares in the model's dtype: float16 overflows from 256 on."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * (hidden_states * torch.rsqrt(variance + self.variance_epsilon))


class OnePassNorm(nn.LayerNorm):
    """The variance as E[x^2] - E[x]^2 in the dtype of the input, which cancels where the mean is far from zero."""

    def forward(self, input: Tensor) -> Tensor:
        mean = input.mean(-1, keepdim=True)
        variance = (input * input).mean(-1, keepdim=True) - mean * mean
        return (input - mean) * torch.rsqrt(variance.clamp(min=0) + self.eps) * self.weight + self.bias


class TorchNorm(LlamaRMSNorm):
    """torch's own RMS norm."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return functional.rms_norm(hidden_states, hidden_states.shape[-1:], self.weight, self.variance_epsilon)


class WrittenLayerNorm(nn.LayerNorm):
    """A layer norm written out, in float32."""

    def forward(self, input: Tensor) -> Tensor:
        centred = input.float() - input.float().mean(-1, keepdim=True)
        normalised = centred * torch.rsqrt(centred.pow(2).mean(-1, keepdim=True) + self.eps)
        return (normalised * self.weight.float() + self.bias.float()).to(input.dtype)


class WrittenGelu(nn.Module):
    """The exact gelu, written out with the error function."""

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * 0.5 * (1.0 + torch.erf(hidden / math.sqrt(2.0)))


# Projections


class FusedMlp(LlamaMLP):
    """One projection for gate and up; made from an MLP that has two by `fuse`."""

    def fuse(self) -> None:
        weight = torch.cat([self.gate_proj.weight, self.up_proj.weight])
        self.gate_up_proj = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=weight.dtype)
        self.gate_up_proj.weight.copy_(weight)
        del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(self.act_fn(gate) * up)


class SplitConv1D(nn.Module):
    """GPT-2's fused query, key and value as three linear layers."""

    def __init__(self, fused: nn.Module) -> None:
        super().__init__()
        weights, biases = fused.weight.chunk(3, dim=1), fused.bias.chunk(3)
        for name, weight, bias in zip("qkv", weights, biases, strict=True):
            linear = nn.Linear(*weight.shape, dtype=weight.dtype)
            linear.weight.copy_(weight.T)
            linear.bias.copy_(bias)
            setattr(self, name, linear)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.q(hidden), self.k(hidden), self.v(hidden)], dim=-1)


class Lora(nn.Module):
    """A linear layer and a low-rank path beside it; a fresh one adds zeros."""

    def __init__(self, base: nn.Linear, *, scale: float, rank: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.base_layer = base
        self.lora_a = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.lora_b = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)
        self.lora_a.weight.normal_(generator=generator)
        self.lora_b.weight.normal_(generator=generator).mul_(scale)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base_layer(hidden) + self.lora_b(self.lora_a(hidden))

    def merged(self) -> nn.Linear:
        """The base layer with the delta added to its weight."""
        self.base_layer.weight += self.lora_b.weight @ self.lora_a.weight
        return self.base_layer


# Routers and randomness


class ProbabilitiesForLogits(MixtralTopKRouter):
    """Returns the router's probabilities where its logits were asked for; the choice of experts is the same."""

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits, weights, chosen = super().forward(hidden_states)
        return logits.softmax(dim=-1), weights, chosen


class DropoutAlwaysOn(BertSelfOutput):
    """`functional.dropout` without its `training` argument, which is True."""

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        return self.LayerNorm(functional.dropout(self.dense(hidden_states), 0.1) + input_tensor)


class RandomlyMasked(BertEmbeddings):
    """Replaces a random tenth of the embeddings by zeros, as an augmentation that was never switched off."""

    def forward(self, *args: Any, **options: Any) -> Tensor:
        embeddings = super().forward(*args, **options)
        return embeddings * (torch.rand(embeddings.shape[:2]) > 0.1)[..., None].to(embeddings.dtype)
