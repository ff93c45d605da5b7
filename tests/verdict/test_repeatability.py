"""Randomness is never a noise floor: who does not repeat is said, with the reason, and what is left is judged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from sweeper.comparator.side import Outputs, Side, sides
from sweeper.verdict import comparison as comparison_module
from sweeper.verdict.comparison import Comparison, compare_models, compare_sides
from sweeper.verdict.repeatability import Random
from tests.small_models import attention, hidden, llama, padded_left


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    geometry = {"vocab_size": 99, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    ids = {"bos_token_id": 1, "eos_token_id": 2}
    return GPT2LMHeadModel(GPT2Config(**geometry, **ids, initializer_range=0.1)).eval()


def bert() -> Any:
    torch.manual_seed(0)
    geometry = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    return BertModel(BertConfig(**geometry, intermediate_size=48), add_pooling_layer=False).eval()


IDS = {"input_ids": torch.randint(3, 99, (2, 16), generator=torch.Generator().manual_seed(0))}


class Recurrent(nn.Module):
    """Dropout between the layers of an LSTM lies in no module of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(16, 16, num_layers=2, dropout=0.3, batch_first=True)

    def forward(self, hidden: Tensor) -> Tensor:
        output: Tensor = self.lstm(hidden)[0]
        return output


def check_training(comparison: Comparison, *sides: str) -> None:
    assert comparison.verdict.kind == "semantic", comparison
    assert comparison.measured.random
    for side in sides:
        assert f"the {side} is random" in comparison.verdict.reason
        assert f"{side}.eval()" in comparison.explain().cause
    assert comparison.explain().cause.startswith("training mode: ")


@pytest.mark.parametrize(
    ("make", "inputs"), [(gpt2, IDS), (bert, IDS), (lambda: Recurrent().eval(), hidden())], ids=["gpt2", "bert", "lstm"]
)
def test_a_reference_in_training_mode_is_named_and_the_rest_is_identical(
    make: Callable[[], nn.Module], inputs: dict[str, Tensor]
) -> None:
    comparison = compare_models(make().train(), make(), inputs)
    check_training(comparison, "reference")
    assert "what is left is identical" in comparison.verdict.reason
    assert "the candidate is random" not in comparison.verdict.reason
    closing = comparison.explain().closing
    assert closing is not None
    assert closing.bitwise


def test_other_weights_behind_dropout_are_named_as_well() -> None:
    comparison = compare_models(gpt2(0).train(), gpt2(1), {**IDS, "use_cache": False})
    check_training(comparison, "reference")
    assert "what is left is semantic" in comparison.verdict.reason
    assert "transformer.wte.weight" in comparison.explain().cause
    assert comparison.explain().closing is not None


def test_dropout_on_both_sides_is_no_copy() -> None:
    check_training(compare_models(bert().train(), bert().train(), IDS), "reference", "candidate")


def test_the_dtype_asked_for_is_judged_once_the_reference_repeats() -> None:
    comparison = compare_models(bert().train(), bert().to(torch.bfloat16), IDS)
    check_training(comparison, "reference")
    assert "what is left is rounding" in comparison.verdict.reason
    assert "dtype: float32 -> bfloat16" in comparison.explain().cause


def test_models_are_in_training_mode_again() -> None:
    reference = gpt2().train()
    reference.transformer.h[1].eval()
    modes = [module.training for module in reference.modules()]
    compare_models(reference, gpt2(), IDS).explain()
    assert [module.training for module in reference.modules()] == modes


def test_training_mode_that_repeats_is_judged_as_it_is() -> None:
    """No dropout, no running statistics: the same function in both modes."""
    assert compare_models(llama().train(), llama(), padded_left()).verdict.kind == "identical"


@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_running_statistics_of_either_side_are_named(side: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).eval()
    models = {"reference": model, "candidate": copy.deepcopy(model)}
    models[side].train()
    inputs = {"input": torch.randn(6, 16, generator=torch.Generator().manual_seed(1))}
    comparison = compare_models(models["reference"], models["candidate"], inputs)
    assert comparison.verdict.kind == "semantic"
    assert not comparison.measured.random
    assert f"call {side}.eval()" in comparison.explain().cause


class MaskedAtRandom(nn.Module):
    """A mask drawn in every forward, in eval mode too, as masked autoencoders do."""

    def __init__(self, draw: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.draw = draw

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden * self.draw(hidden)


def _torch_mask(hidden: Tensor) -> Tensor:
    return (torch.rand(hidden.shape[:2]) > 0.5)[..., None]


def _numpy_mask(hidden: Tensor) -> Tensor:
    return torch.from_numpy(np.random.rand(*hidden.shape[:2]) > 0.5)[..., None]


def _noise(hidden: Tensor) -> Tensor:
    return 1 + 1e-3 * torch.randn_like(hidden)


@pytest.mark.parametrize("draw", [_torch_mask, _numpy_mask, _noise])
@pytest.mark.parametrize("side", ["reference", "candidate"])
def test_a_module_that_draws_in_eval_mode_is_named(draw: Callable[[Tensor], Tensor], side: str) -> None:
    models = {
        name: nn.Sequential(attention(), nn.Identity(), attention(1)).eval() for name in ("reference", "candidate")
    }
    models[side][1] = MaskedAtRandom(draw)
    comparison = compare_models(models["reference"], models["candidate"], {"input": hidden()["hidden"]})
    assert comparison.verdict.kind == "semantic", comparison
    assert f"the {side} is random: 1 does not give the same twice, not in eval mode either" in comparison.verdict.reason
    assert comparison.explain().cause.startswith(f"the {side} is random: 1 does not")
    assert comparison.first_divergence is not None
    assert comparison.first_divergence.module == "1"


def test_noise_as_large_as_what_it_hides_excuses_nothing() -> None:
    """The difference lay within the floor, which was the randomness itself, because both sides drew."""
    model = nn.Sequential(attention(), MaskedAtRandom(_torch_mask)).eval()
    comparison = compare_models(model, copy.deepcopy(model), {"input": hidden()["hidden"]})
    assert comparison.verdict.kind == "semantic"
    assert "the reference is random" in comparison.verdict.reason
    assert "the candidate is random" in comparison.verdict.reason


class OtherOrder(nn.Module):
    """Sums in an order of its own each time, as a GPU's atomic additions do: other bits, and the same function."""

    def forward(self, hidden: Tensor) -> Tensor:
        order = torch.randperm(hidden.shape[-1])
        return hidden + sum(hidden[..., [column]] / 3 for column in order)


def test_an_order_of_sums_that_does_not_repeat_is_no_randomness() -> None:
    model = nn.Sequential(attention(), OtherOrder(), attention(1)).eval()
    inputs = {"input": hidden()["hidden"]}
    assert not compare_models(model, copy.deepcopy(model), inputs).measured.random
    other = copy.deepcopy(model)
    other[2].scale = 0.3
    assert compare_models(model, other, inputs).verdict.kind == "semantic"


def test_the_random_state_of_the_process_goes_on_as_if_nothing_had_run() -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    drawn = torch.rand(2), np.random.rand(2)
    torch.manual_seed(3)
    np.random.seed(3)
    compare_models(bert().train(), bert(), IDS)
    torch.manual_seed(3)  # building the models drew
    assert torch.equal(torch.rand(2), drawn[0])
    assert np.array_equal(np.random.rand(2), drawn[1])


def shallow(candidate: nn.Module, **inputs: Tensor) -> tuple[Comparison, Comparison]:
    """What a sweep gathers, and everything, of a candidate beside itself in float32 and eval mode."""
    reference = copy.deepcopy(candidate).float().eval()
    short, full = (compare_sides(*sides(reference, candidate, inputs), full=full) for full in (False, True))
    return short, full


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda: gpt2().train(), IDS),
        (lambda: Recurrent().train(), hidden()),
        (lambda: bert().train().bfloat16(), IDS),
        (lambda: bert().bfloat16(), IDS),
        (bert, IDS),
        (lambda: MaskedAtRandom(_torch_mask), hidden()),
    ],
    ids=["gpt2", "lstm", "bert", "bert_eval", "same", "mask"],
)
def test_the_evidence_of_a_sweep_finds_the_same_randomness(
    make: Callable[[], nn.Module], inputs: dict[str, Tensor]
) -> None:
    short, full = shallow(make(), **inputs)
    assert short.measured.random == full.measured.random
    assert short.verdict.kind == full.verdict.kind
    assert short.random == full.random


def test_a_candidate_that_is_examined_runs_no_further_time_to_see_that_it_repeats(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def random_side(side: Side, name: str, outputs: Outputs) -> Random | None:
        asked.append(name)
        return original(side, name, outputs)

    original = comparison_module.random_side
    monkeypatch.setattr(comparison_module, "random_side", random_side)
    short, full = shallow(bert().bfloat16(), **IDS)
    assert short.verdict.kind == full.verdict.kind == "rounding"
    assert asked == ["reference", "reference", "candidate"]
