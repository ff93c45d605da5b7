"""A streamed model against the loaded one: tiny seeded models, really saved, every load strategy."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Qwen3MoeConfig
from transformers.models.bert.modeling_bert import BertPooler

from sweeper.checkpoints import seeded
from sweeper.comparator.hooks import tensors_of
from sweeper.comparator.side import sides
from sweeper.config import Cell, Dtype, LoadStrategy, SeededCheckpoint
from sweeper.environment import environment
from sweeper.errors import CheckpointError, UnsupportedError
from sweeper.models import axes
from sweeper.models.loading import load
from sweeper.models.state import compare_state, state_of
from sweeper.models.streaming import streamed
from sweeper.models.swapping import Source
from sweeper.models.weights import WeightsKey
from sweeper.planning.plan import make_plan
from sweeper.records.cell import Status
from sweeper.sweep.runner import Runner
from sweeper.verdict.module_runs import capture
from tests.composing import request_of

CHECKPOINTS = Path(__file__).parents[2] / "conf" / "checkpoint"
NAMES = ("tiny_llama", "tiny_qwen3", "tiny_bert")
STRATEGIES = [(s, d) for s in LoadStrategy for d in Dtype if s is not LoadStrategy.AUTOCAST or d is Dtype.BFLOAT16]


@pytest.fixture(scope="module", params=[(name, dtype) for name in NAMES for dtype in (Dtype.FLOAT32, Dtype.BFLOAT16)])
def saved(request: Any, tmp_path_factory: Any) -> tuple[SeededCheckpoint, Path]:
    name, dtype = request.param
    return save(checkpoint(name, saved_dtype=dtype), tmp_path_factory.mktemp("saved"))


def checkpoint(name: str, **changes: Any) -> SeededCheckpoint:
    return SeededCheckpoint(**{**yaml.safe_load((CHECKPOINTS / f"{name}.yaml").read_text()), **changes})


def save(checkpoint: SeededCheckpoint, folder: Path) -> tuple[SeededCheckpoint, Path]:
    seeded.initialise(checkpoint, seeded.model_config(checkpoint), "cpu").save_pretrained(folder)
    return checkpoint, folder


def cell(checkpoint: SeededCheckpoint, strategy: LoadStrategy, dtype: Dtype) -> Any:
    return Cell.model_construct(checkpoint=checkpoint, load_strategy=strategy, dtype=dtype, device="cpu")


def outputs(model: nn.Module, cell: Any) -> dict[str, list[Tensor]]:
    """What every module gives, in order of execution."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _m, _i, output, name=name: found.update({name: tensors_of(output)}))
        for name, module in model.named_modules()
    ]
    ids_BT = torch.randint(1, 256, (2, 7), generator=torch.Generator().manual_seed(3))
    mask_BT = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1] * 7])
    with torch.inference_mode(), axes.axis("load_strategy").switches_of(cell)["autocast"].context():
        model(input_ids=ids_BT, attention_mask=mask_BT)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(("strategy", "dtype"), STRATEGIES)
def test_a_streamed_model_gives_the_bits_of_the_loaded_one(saved: Any, strategy: LoadStrategy, dtype: Dtype) -> None:
    checkpoint, folder = saved
    asked = cell(checkpoint, strategy, dtype)
    key = WeightsKey.of(asked)
    reference, candidate = load(folder, key, "sdpa"), streamed(folder, key, "sdpa")
    assert all(Source.absent(parameter) for parameter in candidate.parameters())
    assert not candidate.training
    expected, given = outputs(reference, asked), outputs(candidate, asked)
    assert list(expected) == list(given)
    for name, tensors in expected.items():
        for left, right in zip(tensors, given[name], strict=True):
            assert left.dtype == right.dtype, name
            torch.testing.assert_close(right, left, rtol=0, atol=0, equal_nan=True)
    figures = compare_state(state_of(reference), state_of(candidate))
    assert figures.differing == ()
    assert figures.parameters == figures.parameters_equal > 0
    assert all(Source.absent(parameter) for parameter in candidate.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_while_a_module_runs_no_other_parameter_is_in_memory(name: str, tmp_path: Path) -> None:
    saved, folder = save(checkpoint(name), tmp_path)
    asked = cell(saved, LoadStrategy.CAST_AFTER_LOAD, Dtype.BFLOAT16)
    model = streamed(folder, WeightsKey.of(asked), "eager")
    ran = set()

    def present() -> set[int]:
        return {id(parameter) for parameter in model.parameters() if not Source.absent(parameter)}

    def checked(forward: Any, name: str, module: nn.Module) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            assert present() == {id(parameter) for parameter in module.parameters(recurse=False)}
            ran.add(name)
            return forward(*args, **kwargs)

        return run

    leaves = {name: module for name, module in model.named_modules() if list(module.parameters(recurse=False))}
    for name, module in leaves.items():
        module.forward = checked(module.forward, name, module)
    outputs(model, asked)
    assert ran == set(leaves)
    assert present() == set()


def test_no_weight_stays_in_memory_where_a_run_ends_before_its_end(tmp_path: Path) -> None:
    made, folder = save(checkpoint("tiny_llama"), tmp_path)
    model = streamed(folder, WeightsKey.of(cell(made, LoadStrategy.DTYPE_AT_LOAD, Dtype.FLOAT32)), "sdpa")
    side, _ = sides(model, model, {"input_ids": torch.randint(1, 256, (2, 7))})
    ran: list[nn.Module] = []
    model.lm_head.register_forward_hook(lambda module, *_: ran.append(module))
    captured = capture(side, most_bytes=10_000)
    assert ran
    while captured.left:
        ran.clear()
        names = list(captured.left)
        captured = capture(side, calls=captured.left, most_bytes=10_000)
        assert bool(ran) == ("lm_head" in names and "lm_head" not in captured.left)
        assert all(Source.absent(parameter) for parameter in model.parameters())
    assert ran


def test_the_weights_of_a_model_below_a_head_are_found_and_a_folder_of_several_files(tmp_path: Path) -> None:
    whole = checkpoint("tiny_llama")
    seeded.initialise(whole, seeded.model_config(whole), "cpu").save_pretrained(tmp_path, max_shard_size="1MB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    key = WeightsKey.of(cell(checkpoint("tiny_llama", head="base"), LoadStrategy.DTYPE_AT_LOAD, Dtype.FLOAT16))
    assert (
        compare_state(state_of(load(tmp_path, key, "sdpa")), state_of(streamed(tmp_path, key, "sdpa"))).differing == ()
    )


def test_weights_that_the_files_do_not_hold_are_refused(tmp_path: Path) -> None:
    _, folder = save(checkpoint("tiny_qwen3"), tmp_path)  # no head in the file, and tied to none
    headed = checkpoint("tiny_qwen3", head="causal_lm")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    with pytest.raises(CheckpointError, match=r"lacks lm_head\.weight of Qwen3ForCausalLM.*checkpoint\.head=base"):
        streamed(folder, WeightsKey.of(cell(headed, LoadStrategy.DTYPE_AT_LOAD, Dtype.FLOAT32)), "sdpa")


def test_weights_that_transformers_converts_are_refused(tmp_path: Path) -> None:
    geometry = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 16}
    geometry |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 2}
    AutoModelForCausalLM.from_config(Qwen3MoeConfig(**geometry)).save_pretrained(tmp_path)
    key = WeightsKey.of(cell(checkpoint("tiny_llama"), LoadStrategy.DTYPE_AT_LOAD, Dtype.FLOAT32))
    with pytest.raises(UnsupportedError, match="the weights in the files are converted as they are loaded"):
        streamed(tmp_path, key, "sdpa")


@pytest.mark.parametrize("use", [lambda weight: weight, lambda weight: weight[:128, :128]])
def test_a_weight_that_is_used_without_its_module_is_refused(use: Any, tmp_path: Path, monkeypatch: Any) -> None:
    def forward(self: BertPooler, hidden_BTD: Tensor) -> Tensor:
        return nn.functional.linear(hidden_BTD[:, 0], use(self.dense.weight))

    saved, folder = save(checkpoint("tiny_bert"), tmp_path)
    key = WeightsKey.of(cell(saved, LoadStrategy.DTYPE_AT_LOAD, Dtype.FLOAT32))
    streamed(folder, key, "sdpa")
    monkeypatch.setattr(BertPooler, "forward", forward)
    with pytest.raises(UnsupportedError, match="a weight is used without calling the module that owns it"):
        streamed(folder, key, "sdpa")


@pytest.mark.parametrize("kept_bytes", [2**30, 1000], ids=["recorded", "in step"])
def test_a_sweep_with_streamed_weights_has_the_figures_of_an_ordinary_one(
    tmp_path: Path, monkeypatch: Any, kept_bytes: int
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    grid = ("checkpoint=tiny_bert", "inputs=report_2", "load_strategy=dtype_at_load,cast_after_load,autocast")
    plan = make_plan(request_of(*grid, f"output_dir={tmp_path}"), environment("cpu"))
    figures = []
    for weights in ("resident", "streamed"):
        runner = Runner(plan.environment, verdict=False, weights=weights, kept_bytes=kept_bytes, say=print)
        results = [runner.run(planned) for planned in plan.cells]
        assert [record.status for record, _ in results] == [Status.OK] * 3
        figures.append(
            [(record.model_dump(exclude={"cost", "attempt", "started_at"}), modules) for record, modules in results]
        )
    assert repr(figures[0]) == repr(figures[1])  # NaN is equal to itself there


JUDGED = {
    "load strategies": ("dtype=bfloat16", "load_strategy=cast_after_load,autocast", "reference={dtype:bfloat16}"),
    "dtypes": ("dtype=bfloat16,float16", "layout=packed", "attention=sdpa", "reference={dtype:float32}"),
    "a finer candidate": ("dtype=float32", "reference={dtype:bfloat16}"),
    "packed with the cache on": ("layout=packed", "use_cache=true", "attention=sdpa"),
}


@pytest.mark.parametrize("name", JUDGED)
@pytest.mark.parametrize("verdict", [True, "full"])
def test_a_streamed_sweep_has_the_verdicts_and_causes_of_an_ordinary_one(
    name: str, verdict: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounded tables, other dtypes, arguments; figures, evidence and causes bit for bit."""
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    grid = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", *JUDGED[name])
    plan = make_plan(request_of(*grid, f"output_dir={tmp_path}"), environment("cpu"))
    found = []
    for weights in ("resident", "streamed"):
        runner = Runner(plan.environment, verdict=verdict, weights=weights, latency_repeats=0, say=print)
        records = [runner.run(planned)[0] for planned in plan.cells]
        assert all(record.verdict is not None for record in records)
        found.append([record.model_dump(exclude={"cost", "attempt", "started_at"}) for record in records])
    assert repr(found[0]) == repr(found[1])


def test_the_cause_is_found_while_weights_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    grid = ("checkpoint=tiny_llama", "inputs=report_2", "dtype=bfloat16", "load_strategy=cast_after_load")
    plan = make_plan(request_of(*grid, "wandb.mode=disabled", f"output_dir={tmp_path}"), environment("cpu"))
    said = []
    for weights in ("resident", "streamed"):
        runner = Runner(plan.environment, weights=weights, say=print)
        said.append(repr(runner.comparison(plan.cells[0], (0, 1)).explain()))
    assert said[0] == said[1]
    assert "inv_freq" in said[0]
