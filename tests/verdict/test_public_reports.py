"""Further public reports, reproduced small: the verdict and the named cause. docs/verdict.md, "Public cases"."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    T5Config,
    XLMRobertaConfig,
    XLMRobertaModel,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5DenseActDense

from sweeper import Comparison, compare_models
from sweeper.testing import assert_same_function
from sweeper.verdict.rules import Kind

pytestmark = pytest.mark.usefixtures("one_thread")

_SMALL: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_DECODER: dict[str, Any] = {**_SMALL, "num_key_value_heads": 2}


def _model(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, dtype: torch.dtype = torch.float32, **options: Any
) -> Any:
    """A seeded model in evaluation mode."""
    torch.manual_seed(0)
    return model_class._from_config(config, dtype=dtype, **options).eval()


def _ids(rows: int = 2, length: int = 12) -> Tensor:
    """Seeded token ids [B, T], without special tokens."""
    return torch.randint(10, 128, (rows, length), generator=torch.Generator().manual_seed(1))


def _normal(*shape: int) -> Tensor:
    """Seeded normal numbers that float16 and bfloat16 hold exactly."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2)).bfloat16().half().float()


def _cause(comparison: Comparison) -> str:
    """The cause; `pytest -rP` shows the whole comparison, which is where the figures in the document are from."""
    cause = comparison.explain().cause
    print(comparison, cause, sep="\n")
    return cause


class TestRouterBiasIsRounded:
    """https://github.com/vllm-project/vllm/issues/47777 (fixed in vllm-project/vllm#47797).

    Reported: served in bfloat16, a mixture of experts allocates its routing bias in bfloat16 too, and loading casts the
    file's only float32 tensor without a word. Found: the bias decides which experts are chosen, and tokens near a tie
    are sent to others; DeepSeek's models pin it to float32.
    """

    def model(self) -> Any:
        config = DeepseekV3Config(
            **_SMALL,
            num_key_value_heads=4,
            moe_intermediate_size=16,
            n_routed_experts=8,
            num_experts_per_tok=2,
            n_group=1,
            topk_group=1,
            first_k_dense_replace=1,
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=8,
            v_head_dim=8,
        )
        model = _model(DeepseekV3ForCausalLM, config, torch.bfloat16)
        # apart by less than bfloat16's step at 5, which is 1/32
        model.model.layers[1].mlp.gate.e_score_correction_bias = 5 + torch.linspace(0.03, 0, 8)
        return model

    def test_the_bias_is_policy_and_named(self) -> None:
        reference = self.model()
        candidate = copy.deepcopy(reference)
        gate = candidate.model.layers[1].mlp.gate
        gate.e_score_correction_bias = gate.e_score_correction_bias.bfloat16()
        comparison = compare_models(reference, candidate, {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.POLICY
        cause = _cause(comparison)
        assert cause.startswith("buffer model.layers.1.mlp.gate.e_score_correction_bias: float32 -> bfloat16")


class TestRotaryTableIsHalved:
    """https://github.com/EleutherAI/gpt-neox/issues/873 (the cause: EleutherAI/gpt-neox#1003).

    Reported: GPT-NeoX in float16 gives other logits in transformers than in Megatron. Found: one keeps the rotary
    tables in float32, the other computes them in the model's dtype, in which the angles of far positions are lost.
    """

    def test_the_table_is_policy_and_named(self) -> None:
        config = GPTNeoXConfig(**_SMALL, rotary_pct=1.0)
        reference = _model(GPTNeoXForCausalLM, config, torch.float16)
        candidate = copy.deepcopy(reference).half()
        comparison = compare_models(reference, candidate, {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.POLICY
        assert _cause(comparison).startswith("buffer gpt_neox.rotary_emb.inv_freq: float32 -> float16")


class TestLongTextChangesTheNextShortOne:
    """https://github.com/huggingface/transformers/issues/25306.

    Reported: a Llama with dynamic NTK scaling answers the same prompt otherwise after a long text was read in between.
    Found: the long text's rotary base stays in the module. transformers has since put it back for texts within the
    original length; for longer ones it still stays.
    """

    def test_the_table_left_behind_is_named(self) -> None:
        rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
        config = LlamaConfig(**{**_DECODER, "max_position_embeddings": 16}, rope_parameters=rope)
        reference = _model(LlamaForCausalLM, config)
        prompt = {"input_ids": _ids(1, 24), "use_cache": False}
        with torch.no_grad():
            reference(**prompt)
            candidate = copy.deepcopy(reference)
            candidate(_ids(1, 64), use_cache=False)
        comparison = compare_models(reference, candidate, prompt)
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert "inv_freq" in _cause(comparison)


class TestSoftcapIsDropped:
    """https://github.com/vllm-project/vllm-metal/pull/666 (reported in vllm-project/vllm-metal#665).

    Reported: Gemma 2 differs under the paged sdpa kernel. Found: the call gives the kernel a constant 0 for the
    attention softcap, which moves the log-probabilities (that tokens differ as well has another cause). sdpa in
    transformers takes the argument and leaves it out, too.
    """

    def model(self, attention: str) -> Any:
        config = Gemma2Config(
            **_DECODER, head_dim=8, query_pre_attn_scalar=1, attn_logit_softcapping=1.0, sliding_window=64
        )
        return _model(Gemma2ForCausalLM, config, attn_implementation=attention)

    def without(self) -> Any:
        model = self.model("eager")
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        return model

    def inputs(self) -> dict[str, Any]:
        return {"input_ids": _ids(), "use_cache": False}

    def test_the_softcap_is_named(self) -> None:
        comparison = compare_models(self.model("eager"), self.without(), self.inputs())
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("Gemma2Attention.attn_logit_softcapping: 1.0 -> None")

    def test_sdpa_drops_it_and_the_backend_is_named(self) -> None:
        comparison = compare_models(self.model("eager"), self.model("sdpa"), self.inputs())
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("attention backend: eager -> sdpa")

    def test_sdpa_is_eager_without_the_softcap(self) -> None:
        assert_same_function(self.without(), self.model("sdpa"), self.inputs())


class TestQuickGeluIsReplaced:
    """https://github.com/huggingface/pytorch-image-models/issues/1754.

    Reported: OpenAI's CLIP weights give other features in timm than in open_clip. Found: the weights were trained with
    QuickGELU, and the model had GELU; with the activations replaced the features agree.
    """

    def model(self, activation: str) -> Any:
        sizes = {name: _SMALL[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
        config = CLIPVisionConfig(**sizes, num_hidden_layers=2, image_size=8, patch_size=4, hidden_act=activation)
        return _model(CLIPVisionModel, config)

    def test_the_activation_is_named(self) -> None:
        inputs = {"pixel_values": _normal(2, 3, 8, 8)}
        comparison = compare_models(self.model("quick_gelu"), self.model("gelu"), inputs)
        assert comparison.verdict.kind is Kind.SEMANTIC
        cause = _cause(comparison)
        assert cause.startswith("class of activation_fn: QuickGELUActivation -> GELUActivation")


class TestPoolingTakesTheLargestId:
    """https://github.com/huggingface/transformers/issues/24650 (and huggingface/transformers#24777).

    Reported: with tokens added for textual inversion, CLIP's pooled embedding is wrong. Found: it is taken at the
    largest id, which was the end of the text only while no larger id existed; a config whose `eos_token_id` is 2 still
    pools so.
    """

    def model(self, eos_token_id: int) -> Any:
        return _model(CLIPTextModel, CLIPTextConfig(**{**_SMALL, "vocab_size": 132, "eos_token_id": eos_token_id}))

    def test_the_end_of_text_is_named(self) -> None:
        ids = _ids(2, 8)
        ids[0, 3], ids[:, 6:] = 131, 128  # an added token; 128 ends the text and pads it
        comparison = compare_models(self.model(128), self.model(2), {"input_ids": ids})
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert "eos_token_id: 128 -> 2" in _cause(comparison)

    def test_without_added_tokens_nothing_differs(self) -> None:
        ids = _ids(2, 8)
        ids[:, 6:] = 128
        comparison = compare_models(self.model(128), self.model(2), {"input_ids": ids})
        assert comparison.verdict.kind is Kind.IDENTICAL


class TestMambaReadsPads:
    """https://github.com/huggingface/transformers/issues/31540 (fixed in huggingface/transformers#32677).

    Reported: MambaForCausalLM gives other logits for a left-padded text. Found: pads enter the convolution and the
    state; they have to be zeroed by the mask, before and behind the convolution.
    """

    def model(self) -> Any:
        config = MambaConfig(vocab_size=128, hidden_size=32, state_size=8, num_hidden_layers=2, initializer_range=0.1)
        return _model(MambaForCausalLM, config)

    def padded(self) -> dict[str, Any]:
        ids, mask = _ids(2, 10), torch.ones(2, 10, dtype=torch.int64)
        ids[0, :4], mask[0, :4] = 5, 0
        return {"input_ids": ids, "attention_mask": mask, "use_cache": False}

    def test_the_mask_is_named(self) -> None:
        model, padded = self.model(), self.padded()
        without = {name: value for name, value in padded.items() if name != "attention_mask"}
        comparison = compare_models(model, model, padded, without)
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("argument attention_mask")

    def test_with_the_mask_padding_changes_nothing(self) -> None:
        model, padded = self.model(), self.padded()
        alone = [{"input_ids": padded["input_ids"][:1, 4:]}, {"input_ids": padded["input_ids"][1:]}]
        assert_same_function(model, model, [{**call, "use_cache": False} for call in alone], candidate_inputs=padded)


class CausalSelfAttention(nn.Module):
    """Attention whose dropout ends with training."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.dropout = 0.2

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.attend(hidden_BTD, self.dropout if self.training else 0.0)

    def attend(self, hidden_BTD: Tensor, dropout: float) -> Tensor:
        query, key, value = (part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.qkv(hidden_BTD).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out(mixed.transpose(1, 2).flatten(2))


class AlwaysDropping(CausalSelfAttention):
    """The same as reported: the function is given its dropout whatever the mode."""

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return self.attend(hidden_BTD, self.dropout)


class Block(nn.Module):
    """Attention with a norm and a residual."""

    def __init__(self, attention: type[CausalSelfAttention]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.attention = nn.LayerNorm(32), attention()

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.attention(self.norm(hidden))


class TestDropoutInEvaluation:
    """https://github.com/pytorch/pytorch/issues/124464 (nanoGPT's own: https://github.com/karpathy/nanoGPT/pull/240).

    Reported: a model in evaluation mode drops out all the same. Found: `scaled_dot_product_attention` is a function and
    knows no mode; the module has to pass 0 when it is not training.
    """

    def test_it_is_not_rounding_and_the_class_is_named(self) -> None:
        reference, candidate = Block(CausalSelfAttention).eval(), Block(AlwaysDropping).eval()
        comparison = compare_models(reference, candidate, {"hidden": _normal(2, 7, 32)})
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert "CausalSelfAttention -> AlwaysDropping" in _cause(comparison)


class TestEncoderLayerLeftInTraining:
    """https://github.com/pytorch/pytorch/issues/158012.

    Reported: `nn.TransformerEncoderLayer` loses precision where its fast path runs, for evaluation and training mode
    differ. Found: what differs is dropout. Without any, the fast path only rounds otherwise.
    """

    def model(self, dropout: float) -> nn.Module:
        torch.manual_seed(0)
        return nn.TransformerEncoderLayer(32, 4, dim_feedforward=48, dropout=dropout, batch_first=True).eval()

    def test_training_mode_is_named(self) -> None:
        model = self.model(0.1)
        comparison = compare_models(model, copy.deepcopy(model).train(), {"src": _normal(2, 10, 32)})
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("training mode")

    def test_without_dropout_the_mode_only_rounds(self) -> None:
        model = self.model(0.0)
        comparison = compare_models(model, copy.deepcopy(model).train(), {"src": _normal(2, 10, 32)})
        assert comparison.verdict.kind is Kind.ROUNDING
        assert _cause(comparison).startswith("training mode")


class TestEpsilonOfAnotherPort:
    """https://github.com/huggingface/candle/pull/271.

    Reported: candle's Llama does not line up with the one of transformers. Found: one discrepancy was the norms'
    epsilon, 1e-5 against 1e-6; without it the logits line up in float32.
    """

    def test_the_epsilon_is_named(self) -> None:
        reference = _model(LlamaForCausalLM, LlamaConfig(**_DECODER))
        candidate = copy.deepcopy(reference)
        for module in candidate.modules():
            if isinstance(module, LlamaRMSNorm):
                module.variance_epsilon = 1e-5
        comparison = compare_models(reference, candidate, {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("LlamaRMSNorm.variance_epsilon: 1e-06 -> 1e-05 (5 modules)")


class TestPositionsOfRobertaStartAtTwo:
    """https://github.com/huggingface/sentence-transformers/pull/3879.

    Reported: XLM-R's embeddings are silently worse where a batch is packed. Found: the packing passes positions that
    start at 0; RoBERTa's start behind the pad's id, at 2, so that every token reads another row of the table.
    """

    def model(self) -> Any:
        return _model(XLMRobertaModel, XLMRobertaConfig(**{**_SMALL, "pad_token_id": 1, "bos_token_id": 0}))

    def call(self, first: int | None) -> dict[str, Any]:
        ids = _ids(2, 10)
        positions = {} if first is None else {"position_ids": torch.arange(first, first + 10).expand(2, -1)}
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **positions}

    def test_positions_are_named(self) -> None:
        model = self.model()
        comparison = compare_models(model, model, self.call(None), self.call(0))
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("argument position_ids")

    def test_positions_from_two_change_nothing(self) -> None:
        model = self.model()
        assert compare_models(model, model, self.call(None), self.call(2)).verdict.kind is Kind.IDENTICAL


class TestBatchSizeRounds:
    """https://github.com/unslothai/unsloth/issues/9708.

    Reported: greedy texts of a left-padded batch are other than one at a time. Found, once a row of NaN had been fixed:
    no library's bug, but rounding in bfloat16 and float16 that depends on the shape of the batch.
    """

    def test_it_is_rounding_and_the_call_is_named(self) -> None:
        model = _model(LlamaForCausalLM, LlamaConfig(**_DECODER), torch.bfloat16)
        ids, mask = _ids(4, 16), torch.ones(4, 16, dtype=torch.int64)
        mask[0, :3] = mask[2, :2] = 0
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        batch = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "use_cache": False}
        alone = [
            {"input_ids": row[keep][None], "position_ids": torch.arange(int(keep.sum()))[None], "use_cache": False}
            for row, keep in zip(ids, mask.bool(), strict=True)
        ]
        comparison = compare_models(model, model, alone, batch)
        assert comparison.verdict.kind is Kind.ROUNDING
        assert "the call: " in _cause(comparison)


class LoraLinear(nn.Module):
    """A linear layer with an adapter that is not merged."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, rank, bias=False, dtype=base.weight.dtype)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False, dtype=base.weight.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.base_layer(hidden) + self.lora_B(self.lora_A(hidden))

    @torch.no_grad()
    def merged(self, scale: float) -> nn.Linear:
        merged = copy.deepcopy(self.base_layer)
        merged.weight += scale * (self.lora_B.weight @ self.lora_A.weight)
        return merged


class TestMergedAdapterRounds:
    """https://github.com/meta-pytorch/torchtune/issues/1101.

    Reported: a model with an adapter and the same model with the adapter merged give other outputs. Found: no bug; the
    merged weights are rounded to bfloat16.
    """

    def pair(self, dtype: torch.dtype, scale: float = 1.0) -> tuple[Any, Any]:
        adapted = _model(LlamaForCausalLM, LlamaConfig(**_DECODER), dtype)
        for layer in adapted.model.layers:
            layer.self_attn.q_proj = LoraLinear(layer.self_attn.q_proj)
            layer.self_attn.v_proj = LoraLinear(layer.self_attn.v_proj)
        merged = copy.deepcopy(adapted)
        for layer in merged.model.layers:
            layer.self_attn.q_proj = layer.self_attn.q_proj.merged(scale)
            layer.self_attn.v_proj = layer.self_attn.v_proj.merged(scale)
        return adapted, merged

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_it_is_rounding(self, dtype: torch.dtype) -> None:
        comparison = compare_models(*self.pair(dtype), {"input_ids": _ids(), "use_cache": False})
        print(comparison)
        assert comparison.verdict.kind is Kind.ROUNDING

    def test_the_merged_layers_are_named(self) -> None:
        comparison = compare_models(*self.pair(torch.bfloat16), {"input_ids": _ids(), "use_cache": False})
        assert _cause(comparison).startswith("state in model.layers.0.self_attn.q_proj and 3 more: computed from state")

    def test_a_wrong_scale_is_not_rounding(self) -> None:
        comparison = compare_models(*self.pair(torch.bfloat16, 0.5), {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.SEMANTIC


class TestSlidingWindowIsOneWider:
    """https://github.com/huggingface/transformers/issues/39408 (fixed in huggingface/transformers#40163).

    Reported: Mistral with a sliding window writes other texts under flash attention than under sdpa. Found: flash
    attention's bound is inclusive, so that a token saw one more than the window has. Here as what it comes to, a window
    wider by one.
    """

    def test_the_window_is_named(self) -> None:
        reference = _model(MistralForCausalLM, MistralConfig(**_DECODER, sliding_window=4))
        candidate = _model(MistralForCausalLM, MistralConfig(**_DECODER, sliding_window=5))
        comparison = compare_models(reference, candidate, {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert "sliding_window: 4 -> 5" in _cause(comparison)


def _interleaved(weight: Tensor, heads: int) -> Tensor:
    """Rows of halves to rows of neighbours, as a file for llama.cpp has them."""
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _halves(weight: Tensor, heads: int) -> Tensor:
    """The way back."""
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


class TestRotaryRowsOfGroupedHeads:
    """https://github.com/ggml-org/llama.cpp/pull/3364 (reported in jzhang38/TinyLlama#24).

    Reported: TinyLlama writes gibberish once it is converted. Found: the converter reorders the key rows for
    `heads // kv_heads` heads in place of `kv_heads`, which only a model whose two numbers agree survives.
    """

    def model(self) -> Any:
        return _model(LlamaForCausalLM, LlamaConfig(**{**_DECODER, "num_attention_heads": 8, "num_hidden_layers": 1}))

    def converted(self, heads: int) -> Any:
        model = self.model()
        key = model.model.layers[0].self_attn.k_proj
        key.weight.data = _halves(_interleaved(key.weight.data, heads), 2)
        return model

    def test_the_order_of_the_rows_is_named(self) -> None:
        comparison = compare_models(self.model(), self.converted(8 // 2), {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.SEMANTIC
        cause = _cause(comparison)
        assert cause.startswith("parameter model.layers.0.self_attn.k_proj.weight: the same rows in another order")

    def test_the_right_number_of_heads_changes_nothing(self) -> None:
        comparison = compare_models(self.model(), self.converted(2), {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.IDENTICAL


class TestHeadIsNotTied:
    """https://github.com/huggingface/transformers/pull/43429.

    Reported: Ministral 3 writes gibberish. Found: the file holds no `lm_head.weight`, for it is tied to the embedding;
    the outer config does not say so, and the head keeps its random numbers.
    """

    def test_the_head_is_named(self, tmp_path: Path) -> None:
        reference = _model(MistralForCausalLM, MistralConfig(**_DECODER, tie_word_embeddings=True))
        reference.save_pretrained(tmp_path)
        candidate = MistralForCausalLM.from_pretrained(tmp_path, tie_word_embeddings=False, dtype=torch.float32).eval()
        comparison = compare_models(reference, candidate, {"input_ids": _ids(), "use_cache": False})
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert _cause(comparison).startswith("parameter lm_head.weight")


class TestFeedForwardLeavesFloat16:
    """https://github.com/huggingface/transformers/issues/5651.

    Reported: T5 in float16 comes to NaN. Found: the feed-forward's second product is 66246 in float32, beyond float16's
    65504, and Inf there.
    """

    def test_it_is_not_rounding_and_the_dtype_is_named(self) -> None:
        torch.manual_seed(0)
        reference = T5DenseActDense(T5Config(d_model=32, d_ff=48)).eval()
        with torch.no_grad():
            for parameter in reference.parameters():
                parameter.copy_(parameter.half())
            reference.wo.weight *= 2.0**18
        comparison = compare_models(
            reference,
            copy.deepcopy(reference).half(),
            {"hidden_states": _normal(1, 6, 32)},
            {"hidden_states": _normal(1, 6, 32).half()},
        )
        assert comparison.verdict.kind is Kind.SEMANTIC
        assert "dtype: float32 -> float16" in _cause(comparison)
