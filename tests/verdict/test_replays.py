"""Replays that are the same bits are run once; what could make them others is part of their key."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.side import ModelOutputs, Side, sides
from sweeper.environment import environment
from sweeper.inputs.calls import Decoding
from sweeper.models.axis import Switch
from sweeper.planning.plan import make_plan
from sweeper.records.verdict import VerdictRecord
from sweeper.sweep.runner import Runner
from sweeper.verdict import reference_evidence, replays
from sweeper.verdict.measured import Replayed
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.replays import Replays, replay_key
from sweeper.verdict.state_changes import provenance
from sweeper.verdict.thresholds import FLOAT64_EPS
from tests.composing import request_of

GRID = ("load_strategy=dtype_at_load,cast_after_load,autocast", "attention=eager,sdpa", "dtype=float32,bfloat16")
REFERENCE = "reference={dtype:float32,load_strategy:dtype_at_load,attention:eager}"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def verdicts(tmp_path: Path, *arguments: str) -> list[VerdictRecord | None]:
    typed = (
        "checkpoint=tiny_llama",
        "wandb.mode=disabled",
        "device=cpu",
        "latency_repeats=0",
        f"output_dir={tmp_path}",
    )
    plan = make_plan(request_of(*typed, *arguments), environment("cpu"))
    runner = Runner(plan.environment, latency_repeats=0, say=print)
    return [runner.run(planned)[0].verdict for planned in plan.cells]


@pytest.fixture
def in_float64(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry a run in float64."""
    end, ran = ModelOutputs.end, []

    def ended(outputs: ModelOutputs, lasting: Callable[[Tensor], Tensor]) -> None:
        if torch.get_default_dtype() is torch.float64:
            ran.append(True)
        end(outputs, lasting)

    monkeypatch.setattr(ModelOutputs, "end", ended)
    return ran


def test_what_has_the_same_bits_is_run_once_and_the_records_are_those_of_runs_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_float64: list[bool]
) -> None:
    shared = verdicts(tmp_path, REFERENCE, *GRID)
    # the reference, with sdpa, both with the table rounded, and one for the noise of the replay
    assert len(in_float64) == 5
    in_float64.clear()
    monkeypatch.setattr(replays, "replay_key", lambda _: None)
    assert shared == verdicts(tmp_path, REFERENCE, *GRID)
    assert len(in_float64) == 11


def _times(factor: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * factor


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.scale = 2.0
        self.table = torch.ones(4)
        self.array, self.window = np.ones(4), range(4)
        self.partial: Any = functools.partial(torch.mul, other=2.0)
        self.closure = _times(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.scale * self.table


def _side(model: nn.Module) -> Side:
    one, _ = sides(model, model, {"x": torch.arange(8.0).view(1, 2, 4)})
    return replace(one, function="a cell's")


def _scale(model: Scaled) -> None:
    model.scale = 3.0


def _table(model: Scaled) -> None:
    model.table = torch.ones(4) * 3


def _array(model: Scaled) -> None:
    model.array[0] = 3.0


def _window(model: Scaled) -> None:
    model.window = range(3)


def _partial(model: Scaled) -> None:
    model.partial = functools.partial(torch.mul, other=3.0)


def _closure(model: Scaled) -> None:
    model.closure = _times(3.0)


def _mode(model: Scaled) -> None:
    model.linear.train(False)


def _module(model: Scaled) -> None:
    model.linear = nn.Bilinear(4, 4, 4)  # type: ignore[assignment]


@pytest.mark.parametrize("change", [_scale, _table, _array, _window, _partial, _closure, _mode, _module])
def test_whatever_hangs_on_a_model_is_part_of_the_key_but_its_state(change: Callable[[Scaled], None]) -> None:
    model = Scaled()
    rounded = copy.deepcopy(model).bfloat16()
    assert replay_key(_side(model)) == replay_key(_side(rounded)) is not None
    change(rounded)
    assert replay_key(_side(model)) != replay_key(_side(rounded))


class Called:
    """An object that is called, of which nothing is known."""

    def __call__(self, x: Tensor) -> Tensor:
        return x


UNKNOWN = [torch.ones(2, device="meta"), torch.eye(2).to_sparse(), torch.Generator(), Called(), Called().__call__]


@pytest.mark.parametrize("held", UNKNOWN)
def test_what_cannot_be_told_from_other_is_shared_with_none(held: Any) -> None:
    model = Scaled()
    model.table = held
    assert replay_key(_side(model)) is not None
    assert replay_key(_side(model)) != replay_key(_side(model))


def test_the_call_and_what_surrounds_it_are_part_of_the_key() -> None:
    side = _side(Scaled())
    (call,) = side.calls
    x = call.kwargs["x"]
    flag = {"flag": Switch("on", "", nullcontext)}
    others = [
        replace(side, calls=(replace(call, kwargs={"x": x + 1}),)),
        replace(side, calls=(replace(call, kwargs={"x": x.bfloat16()}),)),
        replace(side, calls=(replace(call, kwargs={"x": x, "use_cache": True}),)),
        replace(side, calls=(replace(call, decoding=Decoding(1, "dynamic")),)),
        replace(side, calls=(replace(call, forward=replace(call.forward, flat_N=torch.tensor([1]), lengths=(1,))),)),
        replace(side, switches=flag),
        replace(side, seed=1),
        replace(side, function="another"),
    ]
    keys = [replay_key(one) for one in (side, *others)]
    assert len(set(keys)) == len(keys)
    assert None not in keys
    rounding = {"flag": replace(flag["flag"], rounds=True)}
    assert replay_key(replace(side, switches=rounding)) == keys[0]


def test_of_many_replays_the_last_are_kept() -> None:
    reference = _side(Scaled())
    others = [replace(reference, function=f"another {place}") for place in range(3)]
    nbytes = 2 * 4 * 8  # of the outputs of one
    evidence = ReferenceEvidence(lambda: 2 * nbytes)
    found = provenance(reference.model, reference.model)
    for other in others:
        Replays(reference, other, found, evidence, full=False).gather()
    kept = [evidence.known(reference, replay_key(other)) is not None for other in others]
    assert kept == [False, True, True]


def test_what_is_not_known_of_a_side_is_not_shared() -> None:
    side = _side(Scaled())
    (call,) = side.calls
    assert replay_key(replace(side, function=None)) is None
    assert replay_key(replace(side, calls=(replace(call, kwargs={**call.kwargs, "cache": object()}),))) is None


def _zero(weight: Tensor) -> None:
    weight[0, 0] = -0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("change", "exact"), [(lambda _: None, True), (_zero, False)])
def test_zeros_of_two_signs_are_the_same_values_and_not_the_same_bits(
    dtype: torch.dtype, change: Callable[[Tensor], None], exact: bool
) -> None:
    reference = nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        reference.weight.copy_(torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]))
        candidate = copy.deepcopy(reference).to(dtype)
        change(candidate.weight)
    found = provenance(reference, candidate)
    assert not found.other
    assert not found.asked
    assert found.exact is exact


def test_noise_is_sampled_as_far_as_it_decides_whatever_was_sampled_before(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []

    def sampled(_side: Side, _base: object, seed: int) -> float:
        seeds.append(seed)
        return 1e-15 * (seed + 1)

    monkeypatch.setattr(reference_evidence, "output_floor_sample", sampled)
    side, evidence = _side(Scaled()), ReferenceEvidence()
    found = provenance(side.model, side.model)
    noises = [evidence.replay_noise(side, found, {}, lambda _, enough=enough: enough) for enough in (True, False, True)]
    assert seeds == [0, 1, 2]
    assert noises == [(1e-15, False), (pytest.approx(1e-15 * math.sqrt(14 / 3)), True), (1e-15, False)]


@pytest.mark.parametrize(
    ("asked", "policy", "clear"),
    [
        (1e-3, None, True),
        (1e-3, 0.0, True),
        (1e-3, 1e-15, True),
        (1e-3, 1e-13, False),
        (2e-13, 1e-15, False),
        (1e-15, None, True),
        (math.nan, None, False),
    ],
)
def test_what_lies_near_its_bound_needs_all_of_the_noise(asked: float, policy: float | None, clear: bool) -> None:
    replay = Replayed(
        precision="", eps=FLOAT64_EPS, as_loaded=None, asked=asked, policy=policy, noise=1e-15
    )  # a bound of 6.4e-14
    assert replays._is_clear(replay) is clear
