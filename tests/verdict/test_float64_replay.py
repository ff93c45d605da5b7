from __future__ import annotations

from dataclasses import make_dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from sweeper.comparator.side import run, sides
from sweeper.verdict.first_divergence import outputs_rel_l2
from sweeper.verdict.float64_replay import Precision, attention, attention_implementation, replayed
from sweeper.verdict.noise_floor import measure_floor, output_floor
from tests.small_models import explicit, llama, packed, padded_left


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_transformers_replay_is_float64_throughout_and_finite(dtype: torch.dtype, implementation: str) -> None:
    side, _ = sides(*[llama(dtype, implementation)] * 2, padded_left())
    with replayed(side) as (lifted, precision):
        outputs = run(lifted)
    assert outputs["logits"].dtype is torch.float64
    assert outputs["logits"].isfinite().all()
    assert not precision.lower
    assert precision.lifted > 0


def test_state_keeps_the_rounding_that_it_was_loaded_with() -> None:
    rounded = llama().to(torch.bfloat16)
    exact, table = llama(torch.bfloat16), rounded.model.rotary_emb.inv_freq.double()
    side, other = sides(rounded, exact, padded_left())
    with replayed(side) as (lifted, _):
        assert torch.equal(rounded.model.rotary_emb.inv_freq, table)
        left = run(lifted)
    with replayed(other) as (lifted, _):
        right = run(lifted)
    assert outputs_rel_l2(right, left) > 1e-7


def test_shifted_positions_collapse_by_nine_orders() -> None:
    model = llama(torch.bfloat16)
    reference, candidate = sides(model, model, explicit(padded_left()), explicit(padded_left(), shift=3))
    native = outputs_rel_l2(run(reference), run(candidate))
    with replayed(reference) as (lifted, _):
        left = run(lifted)
    with replayed(candidate) as (lifted, _):
        right = run(lifted)
    assert native > 1e-4
    assert outputs_rel_l2(left, right) < 1e-9 * native


class Stubborn(nn.Module):
    """Rounds to bfloat16 in its own code."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.bfloat16) * 3


def test_what_stays_below_float64_is_counted() -> None:
    side, _ = sides(Stubborn(), Stubborn(), {"x": torch.randn(2, 4)})
    with replayed(side) as (lifted, precision):
        run(lifted)
    assert precision.lower["to"] == 1
    assert precision.eps == torch.finfo(torch.bfloat16).eps
    assert "but for" in str(precision)


def test_autocast_and_the_default_dtype_are_out_of_the_replay_and_back_after() -> None:
    class Asking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.linear(x) + torch.ones(4)

    side, _ = sides(Asking(), Asking(), {"x": torch.randn(2, 4)})
    with replayed(side) as (lifted, precision):
        assert run(lifted)["output"].dtype is torch.float64
    assert not precision.lower
    assert torch.get_default_dtype() is torch.float32


def test_tensors_come_back_even_if_the_run_fails() -> None:
    model = llama(torch.bfloat16)
    before = {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.named_parameters()}
    side, _ = sides(model, model, padded_left())

    def failing(*_: object) -> None:
        assert model.model.norm.weight.dtype is torch.float64
        raise KeyError("stop")

    handle = model.model.norm.register_forward_pre_hook(failing)
    with replayed(side) as (lifted, _), pytest.raises(KeyError, match="stop"):
        run(lifted)
    handle.remove()
    assert {name: (id(tensor), tensor.data_ptr()) for name, tensor in model.named_parameters()} == before
    assert model.dtype is torch.bfloat16


def test_the_attention_backend_is_switched_back() -> None:
    model = llama(attention="sdpa")
    with attention(model, "eager"):
        assert attention_implementation(model) == "eager"
    assert attention_implementation(model) == "sdpa"


def test_the_floor_scales_with_machine_epsilon() -> None:
    floors = {}
    for dtype in (torch.float32, torch.bfloat16):
        side, _ = sides(*[llama(dtype)] * 2, padded_left())
        floors[dtype] = measure_floor(side)
    ratio = floors[torch.bfloat16].level / floors[torch.float32].level
    assert 2**14 < ratio < 2**18  # the two epsilons are 2**16 apart
    low, high = floors[torch.float32].spread
    assert 0 < low <= floors[torch.float32].level <= high
    assert set(floors[torch.float32].rebatched) == {"rows in reverse order", "rows one by one"}
    side, _ = sides(*[llama()] * 2, packed())
    assert measure_floor(side, seeds=1).rebatched == {}  # one row cannot be batched otherwise


def test_the_floor_of_a_replay_is_that_of_float64() -> None:
    side, _ = sides(*[llama()] * 2, padded_left())
    with replayed(side) as (lifted, _):
        assert output_floor(lifted, run(lifted)) < 1e-13
    assert Precision().eps == 2.0**-52


class EasyDict(dict[str, Any]):
    """A dictionary that is read as attributes."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(name)
        return self[name]


class Property:
    """A config whose dtype is computed."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32


class Following(nn.Module):
    """Computes in what its config says."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        dtype = self.config.dtype
        return self.linear(x).to(getattr(torch, dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype)


FROZEN = [make_dataclass("Frozen", [("dtype", object)], frozen=True, slots=slots) for slots in (False, True)]


@pytest.mark.parametrize("kind", [*FROZEN, EasyDict, DictConfig])
@pytest.mark.parametrize("dtype", ["bfloat16", "torch.bfloat16", torch.bfloat16])
def test_a_config_of_any_kind_says_float64_as_it_says_any_dtype(kind: Any, dtype: str | torch.dtype) -> None:
    if kind is DictConfig and isinstance(dtype, torch.dtype):
        pytest.skip("it holds names only")
    config = DictConfig({"dtype": dtype}) if kind is DictConfig else kind(dtype=dtype)
    model = Following(config)
    side, _ = sides(model, model, {"x": torch.randn(2, 4)})
    with replayed(side) as (lifted, precision):
        assert type(config.dtype) is type(dtype)
        run(lifted)
    assert not precision.lower
    assert config.dtype == dtype


READ_ONLY = DictConfig({"dtype": "float32"}, flags={"readonly": True})


@pytest.mark.parametrize("config", [Property(), SimpleNamespace(dtype=None), READ_ONLY])
def test_a_config_that_keeps_no_dtype_or_cannot_be_written_is_left_alone(config: Any) -> None:
    model = Following(config)
    side, _ = sides(model, model, {"x": torch.randn(2, 4)})
    before = config.dtype
    with replayed(side) as (_, _):
        assert config.dtype == before
