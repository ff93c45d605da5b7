from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn

import sweeper
from sweeper.comparator.side import sides
from sweeper.errors import AlignmentError, ConfigError
from sweeper.testing import assert_same_function
from sweeper.verdict.comparison import compare_models
from tests.small_models import FusedAttention, attention, explicit, hidden, llama, packed, padded_left, texts


def test_importing_sweeper_does_not_import_torch() -> None:
    code = (
        "import sweeper, sys; assert 'torch' not in sys.modules; sweeper.compare_models; assert 'torch' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = sweeper.no_such_thing


def test_cast_after_load_is_policy_and_the_table_closes_it_bitwise() -> None:
    reference, candidate = llama(torch.bfloat16), llama().to(torch.bfloat16)
    comparison = sweeper.compare_models(reference, candidate, padded_left())
    assert comparison.verdict.kind == "policy"
    explanation = comparison.explain()
    assert explanation.cause.startswith("buffer model.rotary_emb.inv_freq: float32 -> bfloat16")
    assert explanation.closing is not None
    assert explanation.closing.bitwise
    assert explanation.since is not None
    assert explanation.since.module == "model.rotary_emb"


def test_the_dtype_that_was_asked_for_is_rounding() -> None:
    comparison = compare_models(llama(), llama(torch.bfloat16), padded_left())
    assert comparison.verdict.kind == "rounding"
    assert comparison.measured.replay is not None
    assert comparison.measured.replay.as_loaded > 1e-4  # the weights are rounded: alone, that does not collapse
    assert comparison.explain().cause.startswith("dtype: float32 -> bfloat16")


def test_a_rounded_table_behind_a_dtype_asked_for_is_policy() -> None:
    comparison = compare_models(llama(), llama().to(torch.bfloat16), padded_left())
    assert comparison.verdict.kind == "policy"
    assert "inv_freq" in comparison.explain().cause


def test_implicit_positions_are_rounding_and_explicit_ones_close_it_bitwise() -> None:
    model, inputs = llama(torch.bfloat16), padded_left()
    comparison = compare_models(model, model, inputs, {**packed(), "use_cache": False})
    assert comparison.verdict.kind == "rounding"
    explanation = comparison.explain()
    assert explanation.closing is not None
    assert explanation.closing.bitwise
    assert "position_ids" in explanation.cause


def test_packing_with_the_cache_on_is_semantic_and_starts_behind_the_projections_of_the_second_text() -> None:
    model = llama()
    comparison = compare_models(model, model, padded_left(), packed())
    assert comparison.verdict.kind == "semantic"
    assert comparison.measured.replay is not None
    first, second = comparison.measured.replay.texts
    assert first <= comparison.measured.replay.bound < second
    explanation = comparison.explain()
    assert "use_cache" in explanation.cause
    assert explanation.since is not None
    assert (explanation.since.module, explanation.since.place) == ("model.layers.0.self_attn.o_proj", "input")
    assert explanation.since.text == 1


def test_single_texts_align_with_a_padded_batch() -> None:
    model = llama()
    comparison = compare_models(model, model, padded_left(), [{"input_ids": text[None]} for text in texts()])
    assert comparison.verdict.kind in ("identical", "rounding")


def test_the_same_model_twice_is_identical() -> None:
    comparison = compare_models(llama(), llama(), padded_left())
    assert comparison.verdict.kind == "identical"
    assert comparison.first_divergence is None
    assert comparison.explain().closing is None
    assert_same_function(llama(), llama(), padded_left())


def test_fused_projections_are_rounding_also_across_dtypes() -> None:
    reference = attention()
    candidate = FusedAttention(copy.deepcopy(reference)).to(torch.bfloat16)
    comparison = compare_models(reference, candidate, hidden(), hidden(torch.bfloat16))
    assert comparison.verdict.kind == "rounding", comparison
    assert {"q", "qkv"} <= comparison.native.unaligned.keys()


class Autocast(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.model(**inputs)


def test_autocast_inside_the_model_is_rounding() -> None:
    comparison = compare_models(llama(), Autocast(llama()), padded_left())
    assert comparison.verdict.kind == "rounding", comparison


class Rounding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden.to(torch.bfloat16).to(hidden.dtype))


class Exact(Rounding):
    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.linear(hidden)


def test_code_of_one_side_that_rounds_to_bfloat16_is_semantic() -> None:
    torch.manual_seed(0)
    candidate, reference = Rounding().eval(), Exact().eval()
    reference.load_state_dict(candidate.state_dict())
    inputs = {"hidden": torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2))}
    comparison = compare_models(reference, candidate, inputs)
    assert comparison.verdict.kind == "semantic"
    assert "Exact -> Rounding" in comparison.explain().cause


def test_a_parameter_rounded_in_a_dtype_that_did_not_change_is_policy() -> None:
    candidate = attention()
    candidate.k.weight.data = candidate.k.weight.data.to(torch.float16).float()
    comparison = compare_models(attention(), candidate, hidden())
    assert comparison.verdict.kind == "policy"
    assert "parameter k.weight: rounded to float16" in comparison.explain().cause


def test_assert_same_function_says_what_is_wrong() -> None:
    candidate = attention()
    candidate.scale = 0.26
    with pytest.raises(AssertionError, match=r"Attention.scale: 0.25 -> 0.26"):
        assert_same_function(attention(), candidate, hidden())


def test_modules_is_a_data_frame_in_order_of_execution_with_floors_and_origins() -> None:
    candidate = attention()
    with torch.no_grad():
        candidate.v.weight += 0.01
    modules = compare_models(attention(), candidate, hidden()).modules
    assert list(modules.name) == ["q", "k", "v", "o"]
    assert list(modules.origin.fillna("")) == ["", "", "introduced", "inherited"]
    assert modules.floor_rel_l2.gt(0).all()
    assert modules.rel_l2[2] > 0


def test_the_summary_names_verdict_divergence_and_figures() -> None:
    comparison = compare_models(llama(torch.bfloat16), llama().to(torch.bfloat16), padded_left())
    shown = repr(comparison)
    assert shown.startswith("POLICY: ")
    for part in ("first divergence", "noise floor", "replay rel_l2", ".explain().cause"):
        assert part in shown
    comparison.explain()
    assert "cause: buffer" in repr(comparison)


def _fingerprint(model: nn.Module) -> Any:
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    modules = {
        name: (id(module), type(module), module.training, len(module._forward_hooks), sorted(vars(module)))
        for name, module in model.named_modules()
    }
    return {name: (id(tensor), tensor.data_ptr(), tensor.dtype) for name, tensor in state.items()}, modules


@pytest.mark.parametrize("train", [False, True])
def test_models_come_back_as_they_were(train: bool) -> None:
    reference, candidate = llama(), llama(torch.bfloat16, "sdpa")
    candidate.to(torch.bfloat16)
    candidate.model.norm.variance_epsilon = 0.5
    candidate.model.layers[1].mlp.act_fn = nn.GELU()
    candidate.train(train)
    before = _fingerprint(reference), _fingerprint(candidate)
    values = copy.deepcopy({**candidate.state_dict(), **dict(candidate.named_buffers())})
    config = copy.deepcopy(vars(candidate.config))
    comparison = compare_models(reference, candidate, padded_left(), packed())
    comparison.explain()
    assert comparison.verdict.kind == "semantic"
    assert (_fingerprint(reference), _fingerprint(candidate)) == before
    for name, tensor in {**candidate.state_dict(), **dict(candidate.named_buffers())}.items():
        assert torch.equal(tensor, values[name]), name
    assert vars(candidate.config) == config
    assert torch.get_default_dtype() is torch.float32


def test_running_statistics_are_not_written() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).train()

    class Taking(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    candidate, reference = Taking(model), Taking(copy.deepcopy(model).eval())
    comparison = compare_models(reference, candidate, {"x": torch.randn(5, 4)})
    assert comparison.verdict.kind == "semantic"
    assert "eval()" in comparison.explain().cause
    state = model.state_dict()
    assert torch.equal(state["1.running_mean"], torch.zeros(4))
    assert int(state["1.num_batches_tracked"]) == 0


def test_other_tokens_are_refused() -> None:
    other = packed()
    other["input_ids"] = other["input_ids"].clone()
    other["input_ids"][0, 3] = 127
    model = llama()
    with pytest.raises(AlignmentError, match="real token 3 is"):
        compare_models(model, model, padded_left(), other)
    with pytest.raises(AlignmentError, match="mark pads with attention_mask"):
        compare_models(model, model, padded_left(), {"input_ids": texts()[0][None]})
    with pytest.raises(ConfigError, match="no tensor"):
        compare_models(model, model, {"use_cache": False})


def test_positions_that_restart_tell_the_texts_of_a_packed_row() -> None:
    model = llama()
    reference, candidate = sides(model, model, explicit(padded_left()), packed())
    assert reference.calls[0].forward.lengths == candidate.calls[0].forward.lengths == (6, 10)
    masked = {**packed(), "attention_mask": torch.ones(1, 16, dtype=torch.int64)}
    assert sides(model, model, masked)[0].calls[0].forward.lengths == (6, 10)
