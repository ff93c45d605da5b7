"""Models that accelerate spreads: the figures of one device, copies that are their own, checkpoints made in pieces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoModelForCausalLM

from sweeper.checkpoints import prepare
from sweeper.comparator.in_turns import twin
from sweeper.config import Dtype, SeededCheckpoint, parse
from sweeper.environment import environment
from sweeper.models.loading import ModelPool, SpreadPool, cast_copy, sharing_copy
from sweeper.models.weights import Read, WeightsKey
from sweeper.planning.plan import make_plan
from sweeper.sweep.runner import Runner
from sweeper.verdict.comparison import compare_models
from tests.composing import request_of
from tests.small_models import llama, padded_left

needs_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")


def dispatched(dtype: torch.dtype) -> Any:
    """Hooked by accelerate as over several devices, module by module."""
    model = llama(dtype, attention="sdpa")
    places = [name for name, module in model.named_modules() if name and not list(module.children())]
    return dispatch_model(model, dict.fromkeys(places, "cpu"), force_hooks=True)


@pytest.mark.parametrize("copied", [sharing_copy, twin], ids=["sharing", "twin"])
def test_a_copy_of_a_spread_model_runs_its_own_modules(copied: Any) -> None:
    model = dispatched(torch.float32)
    other = copied(model)
    with torch.no_grad():
        other.lm_head.weight = torch.nn.Parameter(torch.zeros_like(other.lm_head.weight))
        assert not other(**padded_left()).logits.any()
        assert model(**padded_left()).logits.any()


def test_casting_a_copy_leaves_the_spread_model_alone() -> None:
    model = dispatched(torch.float32)
    model.to = lambda *_: pytest.fail("accelerate's own function, which holds the first model")
    other = cast_copy(model, torch.bfloat16)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_spread_models_have_the_verdict_of_others() -> None:
    expected = compare_models(
        llama(torch.bfloat16, "sdpa"), cast_copy(llama(attention="sdpa"), torch.bfloat16), padded_left()
    )
    reference, candidate = dispatched(torch.bfloat16), cast_copy(dispatched(torch.float32), torch.bfloat16)
    found = compare_models(reference, candidate, padded_left())
    assert found.verdict == expected.verdict
    assert found.verdict.kind == "policy"
    assert found.explain().cause == expected.explain().cause


def records(tmp_path: Path, weights: Any, device: str) -> Any:
    grid = (
        "checkpoint=tiny_llama",
        "inputs=report_2",
        "dtype=bfloat16",
        "load_strategy=cast_after_load,auto_then_cast",
    )
    asked = request_of(*grid, f"device={device}", "wandb.mode=disabled", f"output_dir={tmp_path}")
    plan = make_plan(asked, environment(device))
    running = Runner(plan.environment, weights=weights, latency_repeats=0, say=print)
    results = [running.run(planned) for planned in plan.cells]
    return [(record.model_dump(exclude={"cost", "attempt", "started_at"}), modules) for record, modules in results]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_two_gpus)])
def test_a_spread_sweep_has_the_figures_and_verdicts_of_an_ordinary_one(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    assert repr(records(tmp_path, "spread", device)) == repr(records(tmp_path, "resident", device))


@pytest.mark.parametrize(("device", "place"), [("cpu", "cpu"), ("cuda", "auto")])
def test_models_are_spread_over_gpus_where_cells_run_on_them(
    device: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a machine with GPUs "auto" lays a model there, also one that is to run on the CPU."""
    read = []

    def load(_pool: Any, _folder: Path, key: WeightsKey, *_rest: Any) -> tuple[torch.nn.Module, bool]:
        read.append(key.read)
        return torch.nn.Linear(1, 1), True

    monkeypatch.setattr(ModelPool, "_load", load)
    (cell,) = request_of("checkpoint=tiny_llama").cells
    SpreadPool()._load(Path(), WeightsKey(Read(cell.checkpoint, device, Dtype.FLOAT32)), "sdpa", "")
    assert [(one.device, one.device_map) for one in read] == [(place, True)]


def test_a_checkpoint_that_is_made_by_module_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sweeper.checkpoints.seeded._SHARD_BYTES", 10_000)
    (cell,) = request_of("checkpoint=tiny_qwen3").cells
    whole = cell.checkpoint
    assert isinstance(whole, SeededCheckpoint)
    in_pieces = parse(SeededCheckpoint, {**whole.model_dump(), "by_module": True, "head": "causal_lm"})
    folder = prepare(in_pieces, device="cpu", say=print).folder
    assert len(list(folder.glob("*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.model.norm.weight.eq(1).all()
    deviation = model.model.embed_tokens.weight.std().item()
    assert deviation == pytest.approx(model.config.initializer_range, rel=0.1)
    assert not torch.equal(*(model.model.layers[layer].mlp.up_proj.weight for layer in (0, 1)))
