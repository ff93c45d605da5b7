"""What ran is what was asked for, or the cell says so."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from sweeper.comparator import forwards
from sweeper.comparator.forwards import run_forwards, side_of, small_call
from sweeper.config import Attention, Cell, Dtype, LoadStrategy
from sweeper.errors import UnsupportedError
from sweeper.models import checks
from sweeper.models.checks import (
    not_in_effect,
    not_in_force,
    operator_mismatch,
    state_mismatch,
    switch_attention,
    without_effect_on,
)
from sweeper.models.conditions import conditions
from sweeper.models.loading import ModelPool
from sweeper.models.streaming import streamed
from sweeper.models.weights import WeightsKey
from tests.tiny_folders import call, cell_of, folder_of, plain

MATH = "aten::_scaled_dot_product_attention_math"
FLASH = "aten::_scaled_dot_product_flash_attention_for_cpu"


def pooled(pool: ModelPool, name: str, attention: str, **choices: Any) -> Any:
    cell = cell_of(folder_of(name), head="as_saved", attention=attention, **{"dtype": "float32", **choices})
    return pool.get(cell, folder_of(name))[0].model


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(**call()).logits


@pytest.mark.parametrize("name", ["falcon_alibi", "falcon_rotary", "llama"])
@pytest.mark.parametrize("strategy", ["dtype_at_load", "cast_after_load"])
def test_each_backend_has_the_bits_of_a_model_loaded_for_it(name: str, strategy: str) -> None:
    """Falcon is not switched by `set_attn_implementation`, which only warns."""
    pool = ModelPool()
    found = {}
    for attention in ("eager", "sdpa", "eager", "sdpa"):
        model = pooled(pool, name, attention, load_strategy=strategy)
        assert not_in_effect(model, attention) is None
        found[attention] = logits(model)
        assert torch.equal(found[attention], logits(plain(name, dtype=torch.float32, attn_implementation=attention)))
    assert not torch.equal(found["eager"], found["sdpa"])


@pytest.mark.parametrize("name", ["bloom", "deberta-v2", "gpt_oss", "mamba"])
@pytest.mark.parametrize("first", ["eager", "sdpa"])
def test_a_backend_that_transformers_refuses_is_unsupported_in_one_line(name: str, first: str) -> None:
    pool = ModelPool()
    if first == "eager":
        pooled(pool, name, "eager")
    with pytest.raises(UnsupportedError, match=r'^sdpa cannot be used: transformers says "\w+ does not sup') as caught:
        pooled(pool, name, "sdpa")
    assert "\n" not in str(caught.value)
    assert not_in_effect(pooled(pool, name, "eager"), "eager") is None


def test_a_switch_that_does_not_take_is_told_and_undone(caplog: pytest.LogCaptureFixture) -> None:
    model = plain("falcon_rotary", attn_implementation="eager")
    reason = switch_attention(model, "sdpa")
    assert reason == "FalconForCausalLM runs eager and not sdpa: transformers cannot switch it"
    assert not_in_effect(model, "eager") is None
    assert not caplog.records


def test_a_sub_model_that_stays_behind_is_found() -> None:
    model = plain("t5", attn_implementation="eager")
    model.encoder.config._attn_implementation_internal = "sdpa"
    assert not_in_effect(model, "eager") == (
        "T5ForConditionalGeneration runs sdpa and not eager in encoder: transformers cannot switch it"
    )


def test_a_streamed_model_runs_the_backend_that_was_asked_for() -> None:
    key = WeightsKey.of(cell_of(folder_of("falcon_alibi"), head="causal_lm", dtype="float32"))
    for attention in ("eager", "sdpa"):
        model = streamed(folder_of("falcon_alibi"), key, attention)
        expected = plain("falcon_alibi", dtype=torch.float32, attn_implementation=attention)
        assert torch.equal(logits(model), logits(expected))


@pytest.mark.parametrize(
    ("attention", "kernels", "mismatch"),
    [
        (Attention.EAGER, ["eager: matmul + softmax"], None),
        (Attention.EAGER, [FLASH], f"eager was asked for, and the profiler saw {FLASH}"),
        (Attention.SDPA, [MATH], None),
        (Attention.SDPA, ["eager: matmul + softmax"], "the profiler saw eager"),
        (Attention.SDPA_MATH, [FLASH], "sdpa_math was asked for"),
        (Attention.SDPA_FLASH, [FLASH], None),
        (Attention.SDPA_FLASH, [MATH], "sdpa_flash was asked for"),
        (Attention.FLEX_ATTENTION, ["torch.compile region"], None),
        (Attention.SDPA, [], None),
    ],
)
def test_the_operator_must_be_the_backends(attention: Attention, kernels: list[str], mismatch: str | None) -> None:
    found = operator_mismatch(attention, kernels)
    assert found is None if mismatch is None else mismatch in str(found)


def test_parameters_of_another_dtype_are_told() -> None:
    model = plain("llama", dtype=torch.bfloat16)
    cell = cell_of(folder_of("llama"))
    assert state_mismatch(model, cell) is None
    wrong = "LlamaForCausalLM holds bfloat16 and no float32, which was asked for"
    assert state_mismatch(model, cell.model_copy(update={"dtype": Dtype.FLOAT32})) == wrong
    assert state_mismatch(model, cell.model_copy(update={"load_strategy": LoadStrategy.AUTOCAST})) == wrong
    assert state_mismatch(model, cell.model_copy(update={"device": "cuda"})) == (
        "LlamaForCausalLM lies on cpu in part, and not on cuda"
    )


def flagged(**flags: Any) -> Cell:
    return cell_of(folder_of("llama"), numerics={"name": "x", **flags})


def test_flags_are_looked_up_where_the_forward_begins() -> None:
    cell = flagged(deterministic=True)
    assert not_in_force(cell) == "numerics.deterministic is False during the forward, and not True"
    with conditions(cell):
        assert not_in_force(cell) is None
    autocast = cell_of(folder_of("llama"), load_strategy="autocast")
    assert "autocast is to None during the forward, and not to torch.bfloat16" in str(not_in_force(autocast))
    with conditions(autocast):
        assert not_in_force(autocast) is None
        assert "autocast is to torch.bfloat16" in str(not_in_force(cell_of(folder_of("llama"))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="the other flags mean nothing on a CPU")
@pytest.mark.parametrize("flag", sorted(set(checks._IN_FORCE) - {"deterministic"}))
def test_every_flag_is_read_back_on_a_gpu(flag: str) -> None:
    value: Any = {"blas": "cublaslt", "bf16_reduction": "off", "fp16_reduction": "off"}.get(flag, True)
    cell = flagged(**{flag: value}).model_copy(update={"device": "cuda"})
    with conditions(cell):
        assert not_in_force(cell) is None


def test_a_setting_that_is_not_in_force_makes_the_cell_unsupported() -> None:
    with pytest.raises(UnsupportedError, match=r"numerics\.deterministic is False during the forward"):
        without_effect_on(plain("llama"), call(), flagged(deterministic=True))


@torch.inference_mode()
def found_without_effect(name: str, layout: str = "padded_left", **more: Any) -> dict[str, str]:
    return without_effect_on(plain(name), call() | more, cell_of(folder_of(name), layout=layout, causal=True))


@torch.inference_mode()
@pytest.mark.parametrize("name", ["bert", "roberta", "modernbert_base"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_texts_of_an_encoder_are_kept_apart(name: str, attention: str) -> None:
    """Each is, up to rounding, what it is alone; and no bit of it depends on its neighbour."""
    model = plain(name, attn_implementation=attention)
    chosen: dict[str, Any] = {"attention": attention, "dtype": "float32", "causal": False}
    packed, single = (cell_of(folder_of(name), layout=layout, **chosen) for layout in ("packed", "single"))
    token_ids = [[5, 6, 7, 8, 9], [10, 11, 12]]
    outputs = [run_forwards(model, side_of(cell, model, token_ids, [range(2)]).calls) for cell in (packed, single)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    call = small_call(packed, model, token_ids)
    assert without_effect_on(model, call, packed) == {}
    leaky = {key: value for key, value in call.items() if key != "attention_mask"}
    with pytest.raises(UnsupportedError, match="does not keep packed texts apart"):
        without_effect_on(model, leaky, packed)


def test_a_packed_text_beyond_a_sliding_window_needs_a_mask_for_each_kind_of_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = plain("modernbert_base")
    monkeypatch.setattr(forwards, "takes_masks_by_layer", lambda _: False)
    cell = cell_of(folder_of("modernbert_base"), layout="packed", causal=False)
    with pytest.raises(
        UnsupportedError, match=r"longer than the 64 that a layer of ModernBertModel sees; type inputs\."
    ):
        side_of(cell, model, [[5] * 65, [6]], [range(2)])


def test_arguments_that_do_nothing_are_told() -> None:
    positions = {"position_ids": torch.tensor([[0, 1, 2, 3, 4], [0, 0, 0, 1, 2]])}
    assert found_without_effect("llama", use_cache=True, **positions) == {}
    assert found_without_effect("falcon_alibi", **positions) == {
        "positions": "other position_ids change no bit of what FalconForCausalLM gives"
    }
    assert set(found_without_effect("falcon_alibi", "packed", **positions)) == {"positions", "layout"}
    assert found_without_effect("bert", use_cache=True) == {"use_cache": "BertForMaskedLM gives no cache"}
    assert found_without_effect("mamba", use_cache=True) == {}
