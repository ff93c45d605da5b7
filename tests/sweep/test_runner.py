"""Cells run for real on the tiny checkpoints: what is shared changes no bit, and what goes wrong stays in its cell."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sweeper.config import Pooling
from sweeper.environment import environment
from sweeper.models import loading
from sweeper.models.swapping import Source
from sweeper.models.weights import WeightsKey
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.sweep.runner import TOO_LARGE, Runner
from tests.composing import request_of

TINY = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def plan_of(tmp_path: Path, *arguments: str) -> Plan:
    request = request_of(*TINY, f"output_dir={tmp_path}", *arguments)
    return make_plan(request, environment("cpu"))


def runner(plan: Plan) -> Runner:
    return Runner(plan.environment, latency_repeats=1, verdict=False, say=print)


def run(plan: Plan) -> list[tuple[CellRecord, tuple[ModuleRecord, ...]]]:
    running = runner(plan)
    return [running.run(planned) for planned in plan.cells]


def comparable(record: CellRecord, modules: tuple[ModuleRecord, ...]) -> dict[str, Any]:
    """Everything that must not depend on what ran before."""
    varying = {"cost", "attempt", "started_at"}
    return {**record.model_dump(exclude=varying, mode="json"), "modules": [m.model_dump_json() for m in modules]}


def test_cells_that_share_models_and_references_equal_cells_that_run_alone(tmp_path: Path) -> None:
    grid = (
        "dtype=float32,bfloat16",
        "load_strategy=dtype_at_load,cast_after_load",
        "attention=eager,sdpa",
        "layout=padded_left,packed",
    )
    plan = plan_of(tmp_path, *grid)
    together = run(plan)
    assert len(together) == 16
    assert all(record.status is Status.OK for record, _ in together)
    for planned, (record, modules) in zip(plan.cells, together, strict=True):
        assert comparable(record, modules) == comparable(*runner(plan).run(planned))


def test_report_1_in_small(tmp_path: Path) -> None:
    plan = plan_of(
        tmp_path, "load_strategy=cast_after_load", "reference={load_strategy:dtype_at_load}", "layout=single"
    )
    ((record, modules),) = run(plan)
    assert record.state is not None
    assert record.state.parameters_equal == record.state.parameters
    assert {difference.name.split(".")[-1] for difference in record.state.differing} == {
        "inv_freq",
        "original_inv_freq",
    }
    assert record.first_divergence == "model.rotary_emb"
    equal = {module.name: module.measures.equal_fraction for module in modules}
    layer = "model.layers.0.self_attn"
    assert [equal[f"{layer}.{name}_proj"] for name in "qkv"] == [1, 1, 1]
    assert equal[f"{layer}.o_proj"] < 1
    assert record.language is not None
    assert record.output_kind == "logits"


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_cache_leaks_across_packed_texts_and_only_the_cache(tmp_path: Path, attention: str) -> None:
    plan = plan_of(
        tmp_path,
        "dtype=float32",
        f"attention={attention}",
        "layout=packed",
        "use_cache=false,true",
        "reference={layout:padded_left,use_cache:false}",
    )
    without, with_cache = (record for record, _ in run(plan))
    assert [text.output_max_abs < 1e-4 for text in without.texts] == [True, True]
    first, second = with_cache.texts
    assert first.output_max_abs < 1e-4
    assert second.output_max_abs > 0.1
    assert second.embedding_cosine < 0.99


def test_a_cell_against_itself_is_identical_and_repeatable(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "dtype=float32", "attention=eager")
    ((record, modules),) = run(plan)
    assert record.cell_id == record.reference_id
    assert record.output is not None
    assert record.output.equal_fraction == 1
    assert record.first_divergence is None
    assert record.cost is not None
    assert record.cost.repeatable
    assert all(module.measures.max_abs == 0 for module in modules)


def test_modules_are_named_by_layer_and_kind(tmp_path: Path) -> None:
    ((record, modules),) = run(plan_of(tmp_path, "attention=eager"))
    by_name = {module.name: module for module in modules}
    assert [module.order for module in modules] == list(range(len(modules)))
    assert by_name["model.layers.1"].kind == "layer"
    assert by_name["model.layers.1.mlp.up_proj"].layer == 1
    assert by_name["model.rotary_emb[1]"].layer is None
    assert record.output is not None
    sums = {"mean_abs", "rms", "rel_l2", "sqnr_db", "cosine"}  # the output's are text by text
    assert by_name["lm_head"].measures.model_dump(exclude=sums) == record.output.model_dump(exclude=sums)
    assert by_name["lm_head"].measures.rel_l2 == pytest.approx(record.output.rel_l2, rel=1e-12)
    assert record.unaligned == {}
    assert record.attention_kernels == ("eager: matmul + softmax",)


def test_a_failing_cell_is_recorded_frees_its_model_and_the_sweep_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "dtype=bfloat16,float32")
    models: list[weakref.ref[nn.Module]] = []

    def out_of_memory(module: nn.Module, _inputs: Any, output: Any) -> None:
        models.append(weakref.ref(module))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    running = runner(plan)
    original = nn.Embedding.forward

    def forward(self: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        output = original(self, ids)
        if output.dtype is torch.bfloat16:
            out_of_memory(self, ids, output)
        return output

    monkeypatch.setattr(nn.Embedding, "forward", forward)
    results = {str(planned.cell.dtype): running.run(planned) for planned in plan.cells}
    failed, modules = results["bfloat16"]
    assert failed.status is Status.FAILED
    assert failed.reason == TOO_LARGE
    assert failed.traceback is not None
    assert "out_of_memory" in failed.traceback
    assert modules == ()
    assert results["float32"][0].status is Status.OK
    gc.collect()
    assert models
    assert all(model() is None for model in models)


def test_a_cell_for_which_memory_runs_out_runs_streamed_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (planned,) = plan_of(tmp_path, "dtype=bfloat16", "attention=eager").cells
    expected, expected_modules = runner(plan_of(tmp_path, "dtype=bfloat16", "attention=eager")).run(planned)
    forward = nn.Embedding.forward

    def short(self: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if Source.of(self.weight) is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, ids)

    monkeypatch.setattr(nn.Embedding, "forward", short)
    record, modules = runner(plan_of(tmp_path, "dtype=bfloat16", "attention=eager")).run(planned)
    assert record.status is Status.OK
    assert record.without_effect["weights"].startswith("memory ran out")
    assert modules == expected_modules
    assert (record.output, record.texts, record.verdict) == (expected.output, expected.texts, expected.verdict)


def test_an_output_of_nan_everywhere_is_a_failure_with_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = nn.Embedding.forward
    monkeypatch.setattr(
        nn.Embedding,
        "forward",
        lambda self, ids: original(self, ids) * (float("nan") if self.weight.dtype is torch.bfloat16 else 1),
    )
    ((record, modules),) = run(plan_of(tmp_path, "dtype=bfloat16"))
    assert record.status is Status.FAILED
    assert record.reason == "every element of the output is NaN"
    assert record.output is not None
    assert record.output.candidate_nan == record.output.numel
    assert modules


def test_what_cannot_run_here_is_not_run(tmp_path: Path) -> None:
    ((record, modules),) = run(plan_of(tmp_path, "attention=flash_attention_2"))
    assert record.status is Status.UNSUPPORTED
    assert record.output is None
    assert modules == ()


def test_encoders_are_compared_by_their_hidden_states_and_mean_pooling(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "checkpoint=tiny_bert", "positions=implicit", "layout=padded_right", "attention=eager")
    ((record, _),) = run(plan)
    assert record.status is Status.OK
    assert record.output_kind == "last_hidden_state"
    assert record.language is None
    assert len(record.texts) == 2
    assert all(text.embedding_cosine > 0.99 for text in record.texts)


def test_batches_give_what_one_batch_gives(tmp_path: Path) -> None:
    """Exact where rows do not meet: the same rows, split into batches, single layout."""
    plans = [
        plan_of(tmp_path, "inputs=sentences", f"inputs.batch_size={size}", "layout=single", "dtype=bfloat16")
        for size in (8, 3)
    ]
    whole, split = (run(plan)[0] for plan in plans)
    assert whole[0].texts == split[0].texts
    for one, other in zip(whole[1], split[1], strict=True):
        assert one.measures.max_abs == other.measures.max_abs
        assert (one.worst_text, one.worst_position) == (other.worst_text, other.worst_position)
        assert one.measures.mean_abs == pytest.approx(other.measures.mean_abs, rel=1e-12)


def test_the_reference_stays_loaded_while_its_candidates_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    original = loading.load

    def load(folder: Path, key: WeightsKey, attention: str) -> nn.Module:
        loads.append(key)
        return original(folder, key, attention)

    monkeypatch.setattr(loading, "load", load)
    plan = plan_of(tmp_path, "dtype=bfloat16", "load_strategy=dtype_at_load,cast_after_load")
    judging = Runner(plan.environment, latency_repeats=1, verdict=True, say=print)
    assert [judging.run(planned)[0].status for planned in plan.cells] == [Status.OK] * 2
    assert len(loads) == len(set(loads)) == plan.weight_reads == 2


def test_a_cell_that_differs_in_its_pooling_alone_is_not_identical(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "layout=single", "reference={dtype:float32}")
    (planned,) = plan.cells
    source = planned.cell.checkpoint.model_copy(update={"pooling": Pooling.MEAN})
    reference = planned.cell.model_copy(update={"checkpoint": source})
    pooled = replace(planned, reference=reference, reference_id="another")
    record, _ = Runner(plan.environment, latency_repeats=1, verdict=True, say=print).run(pooled)
    assert record.first_divergence is None
    assert record.verdict is not None
    assert (record.verdict.kind, record.texts[0].embedding_max_abs > 0) == ("semantic", True)
    assert record.verdict.first_divergence is not None
    assert record.verdict.first_divergence.startswith("introduced at (pooling), most at text")


def test_other_batches_than_the_references_meet_row_by_row(tmp_path: Path) -> None:
    (planned,) = plan_of(tmp_path, "layout=single").cells
    inputs = planned.cell.inputs.model_copy(update={"batch_size": 1})
    reference = planned.cell.model_copy(update={"inputs": inputs})
    record, _ = Runner({}, say=print).run(replace(planned, reference=reference, reference_id="another"))
    assert record.status is Status.OK
    assert record.first_divergence is None


def test_a_record_says_what_was_done_to_the_texts(tmp_path: Path) -> None:
    given = ("inputs.max_tokens=3", "checkpoint.prompt='so: '", "layout=padded_left,packed")
    padded, packed = (record for record, _ in run(plan_of(tmp_path, *given)))
    assert packed.reading == {"prompt": "'so: ' before every text", "cut": "2 of 2 texts, to 3 tokens"}
    end = "token 2: the checkpoint names no pad token, its end token stands in"
    assert padded.reading == {**packed.reading, "pads": end}
