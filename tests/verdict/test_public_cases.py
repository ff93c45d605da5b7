"""Reports that others published, reproduced small: the verdict and the named cause. docs/verdict.md, "Public cases"."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedModel
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaForCausalLM

from sweeper import Comparison, compare_models
from sweeper.testing import assert_same_function
from sweeper.verdict.rules import Kind

pytestmark = pytest.mark.usefixtures("one_thread")

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
}
# The ids of huggingface/transformers#29419: 2 is the pad.
_RIGHT = {
    "input_ids": torch.tensor([[1, 7251, 727, 29901, 29871], [1, 29871, 29896, 2, 2]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
}
_LEFT = {
    "input_ids": torch.tensor([[1, 7251, 727, 29901, 29871], [2, 2, 1, 29871, 29896]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
}
# The ids of huggingface/trl#469: 50256 is the pad.
_ALONE = {"input_ids": torch.tensor([[23073, 837, 339, 561]])}
_ALONE_LEFT = {
    "input_ids": torch.tensor([[50256, 50256, 23073, 837, 339, 561]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1]]),
}


def _llama(model_class: type[PreTrainedModel], dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return model_class._from_config(LlamaConfig(vocab_size=32000, num_hidden_layers=2, **_SMALL), dtype=dtype).eval()


def _cause(comparison: Comparison) -> str:
    """The cause; `pytest -rP` shows the whole comparison, which is where the figures in the document are from."""
    cause = comparison.explain().cause
    print(comparison)
    return cause


class TestCrossAttentionIsCausalUnderSdpa:
    """huggingface/transformers#48172: Mllama's cross-attention has no `is_causal`, which sdpa takes for causal."""

    def model(self, attention: str) -> Any:
        config = MllamaTextConfig(
            vocab_size=300,
            num_hidden_layers=3,
            cross_attention_layers=[1],
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            rope_parameters=None,
            **_SMALL,
        )
        torch.manual_seed(0)
        model = MllamaForCausalLM._from_config(config, attn_implementation=attention).eval()
        layer = model.model.layers[1]
        if hasattr(layer.cross_attn, "is_causal"):
            pytest.skip("this transformers sets is_causal on MllamaTextCrossAttention")
        with torch.no_grad():  # a gate is zero before training: the image would change nothing
            layer.cross_attn_attn_gate.fill_(1)
        return model

    def repaired(self) -> Any:
        model = self.model("sdpa")
        model.model.layers[1].cross_attn.is_causal = False
        return model

    def inputs(self) -> dict[str, Any]:
        """12 tokens and 17 image patches, without a `cross_attention_mask`."""
        generator = torch.Generator().manual_seed(1)
        return {
            "input_ids": torch.randint(10, 300, (1, 12), generator=generator),
            "cross_attention_states": torch.randn(1, 17, 32, generator=generator),
            "use_cache": False,
        }

    def test_sdpa_against_eager_names_the_backend_and_the_module(self) -> None:
        comparison = compare_models(self.model("eager"), self.model("sdpa"), self.inputs())
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("attention backend: eager -> sdpa")
        assert comparison.first_divergence is not None
        assert comparison.first_divergence.module.startswith("model.layers.1.cross_attn.o_proj")

    def test_against_the_repaired_module_names_the_attribute(self) -> None:
        comparison = compare_models(self.repaired(), self.model("sdpa"), self.inputs())
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("MllamaTextCrossAttention.is_causal: False -> the class's own")

    def test_the_repaired_module_is_the_same_function_as_eager(self) -> None:
        assert_same_function(self.model("eager"), self.repaired(), self.inputs())


class FirstColumn(nn.Module):
    """CLS pooling as reported, [B, D]."""

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return hidden_BTD[:, 0]


class FirstRealToken(nn.Module):
    """CLS pooling that takes the padding side into account, [B, D]."""

    def forward(self, hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
        return hidden_BTD[torch.arange(len(hidden_BTD)), mask_BT.argmax(dim=1)]


class Embedder(nn.Module):
    """A seeded transformer and a pooling module."""

    def __init__(self, pooling: nn.Module) -> None:
        super().__init__()
        self.transformer, self.pooling = _llama(LlamaModel), pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor | None = None) -> Tensor:
        output = self.transformer(input_ids, attention_mask=attention_mask, position_ids=position_ids, use_cache=False)
        return self.pooling(output.last_hidden_state, attention_mask)


class TestClsPoolingReadsPads:
    """huggingface/sentence-transformers#3208: `[:, 0]` is a pad under left padding."""

    def test_the_pooling_is_named(self) -> None:
        comparison = compare_models(Embedder(FirstRealToken()), Embedder(FirstColumn()), _LEFT)
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("class of pooling: FirstRealToken -> FirstColumn")

    def test_another_padding_side_names_ids_and_mask(self) -> None:
        model = Embedder(FirstColumn())
        comparison = compare_models(model, model, _RIGHT, _LEFT)
        assert comparison.verdict.kind is Kind.SEMANTIC
        cause = _cause(comparison)
        assert "attention_mask" in cause
        assert "input_ids" in cause

    def test_another_padding_side_changes_nothing_for_the_first_real_token(self) -> None:
        model = Embedder(FirstRealToken())
        assert_same_function(model, model, _RIGHT, candidate_inputs=_LEFT)


class TestLeftPaddingMovesLearnedPositions:
    """huggingface/trl#469: GPT-2 counts positions over left pads."""

    def model(self) -> Any:
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, initializer_range=0.1)).eval()

    def test_positions_are_named(self) -> None:
        model = self.model()
        comparison = compare_models(model, model, _ALONE, _ALONE_LEFT)
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("position_ids: the two sides count positions differently")
        assert comparison.first_divergence is not None
        assert comparison.first_divergence.module == "transformer.wpe"

    def test_with_position_ids_padding_changes_nothing(self) -> None:
        model = self.model()
        explicit = {**_ALONE_LEFT, "position_ids": torch.tensor([[0, 0, 0, 1, 2, 3]])}
        assert_same_function(model, model, _ALONE, candidate_inputs=explicit)


class TestPaddingSideRoundsRotaryPositions:
    """huggingface/transformers#29419: Llama counts over pads as well, but rotary positions are relative."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_rounding_and_positions_are_named(self, dtype: torch.dtype) -> None:
        model = _llama(LlamaForCausalLM, dtype)
        comparison = compare_models(model, model, _RIGHT, _LEFT)
        assert comparison.verdict.kind is Kind.ROUNDING
        assert _cause(comparison).startswith("position_ids: the two sides count positions differently")
