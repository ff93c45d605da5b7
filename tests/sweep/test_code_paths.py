"""What is learned once is what each cell would have learned itself, and is learned again where other code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sweeper.comparator import forwards
from sweeper.config import Attention
from sweeper.environment import environment
from sweeper.errors import UnsupportedError
from sweeper.models import attention
from sweeper.models.swapping import Source
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import Cost
from sweeper.sweep import code_paths, cost
from sweeper.sweep.runner import Runner
from tests.composing import request_of

TINY = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled")
KERNELS = {
    Attention.EAGER: ("eager: matmul + softmax",),
    Attention.SDPA: ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    Attention.SDPA_MATH: ("aten::_scaled_dot_product_attention_math",),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One word for everything that is learned: what it is."""
    words: list[str] = []

    def record_kernels(*arguments: Any) -> Any:
        words.append("kernels")
        return attention.record_kernels(*arguments)

    def steady_outputs(*arguments: Any) -> Any:
        words.append("steady")
        return forwards.steady_outputs(*arguments)

    monkeypatch.setattr(code_paths, "record_kernels", record_kernels)
    monkeypatch.setattr(code_paths, "steady_outputs", steady_outputs)
    return words


def kernels(plan: Plan, **options: Any) -> list[tuple[str, ...]]:
    running = Runner(plan.environment, verdict=False, say=print, **{"latency_repeats": 1, **options})
    return [running.run(planned)[0].attention_kernels for planned in plan.cells]


def plan_of(tmp_path: Path, *arguments: str) -> Plan:
    return make_plan(request_of(*TINY, f"output_dir={tmp_path}", *arguments), environment("cpu"))


def test_strategies_share_what_decides_the_code_and_its_dtypes(tmp_path: Path, learned: list[str]) -> None:
    strategies = "dtype_at_load,device_map,cast_after_load,cast_before_move,auto_then_cast,autocast"
    plan = plan_of(tmp_path, "attention=eager,sdpa,sdpa_math", f"load_strategy={strategies}")
    assert kernels(plan) == [KERNELS[planned.cell.attention] for planned in plan.cells]
    # a cast rounds the rotary tables as well, so that some buffers are of another dtype than those of a load
    assert (learned.count("kernels"), learned.count("steady")) == (3 * 3, 3 * 2)


@pytest.mark.parametrize("kept_bytes", [2**30, 1])
def test_a_pass_in_step_tells_the_candidates_kernels_alone(tmp_path: Path, learned: list[str], kept_bytes: int) -> None:
    plan = plan_of(tmp_path, "attention=sdpa,sdpa_math", "layout=packed", "reference={attention:eager}")
    assert kernels(plan, kept_bytes=kept_bytes) == [KERNELS[planned.cell.attention] for planned in plan.cells]
    assert learned.count("kernels") == 2


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The layers that began to run, of each forward that is not compared."""
    ran: list[list[str]] = []

    def run_forwards(model: Any, *called: Any) -> Any:
        ran.append([])
        layers = enumerate(model.model.layers)
        handles = [layer.register_forward_pre_hook(lambda *_, n=n: ran[-1].append(f"layer {n}")) for n, layer in layers]
        try:
            return forwards.run_forwards(model, *called)
        finally:
            for handle in handles:
                handle.remove()

    for module in (cost, code_paths):
        monkeypatch.setattr(module, "run_forwards", run_forwards)
    return ran


def test_where_nothing_is_timed_no_more_than_a_layer_runs_beside_what_is_compared(
    tmp_path: Path, bare: list[list[str]]
) -> None:
    plan = plan_of(tmp_path, "dtype=bfloat16", "load_strategy=autocast,dtype_at_load")
    assert kernels(plan, latency_repeats=0) == [KERNELS[planned.cell.attention] for planned in plan.cells]
    assert bare == [["layer 0"], ["layer 0"]]


def costs(plan: Plan, repeats: int | None) -> list[Cost]:
    running = Runner(plan.environment, verdict=False, say=print, latency_repeats=repeats)
    return [record.cost for record in (running.run(planned)[0] for planned in plan.cells) if record.cost is not None]


def test_what_a_code_path_costs_is_measured_once_and_says_by_whom(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "attention=eager,sdpa", "load_strategy=dtype_at_load,device_map")
    found = costs(plan, None)
    for backend in (Attention.EAGER, Attention.SDPA):
        first, alike = (place for place, planned in enumerate(plan.cells) if planned.cell.attention is backend)
        assert (found[first].measured_in, found[alike].measured_in) == (None, plan.cells[first].cell_id)
        assert (found[alike].latency_ms, found[alike].repeatable) == (found[first].latency_ms, True)
    assert len({cost.latency_ms for cost in found}) == 2


@pytest.mark.parametrize("error", [UnsupportedError("not here"), RuntimeError("broken")])
def test_no_cell_names_one_that_failed_behind_its_measurement(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "load_strategy=dtype_at_load,device_map,cast_after_load", "dtype=float32")
    running = Runner(plan.environment, verdict=False, say=print)

    def failing(*_: object) -> None:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "_finished", failing)
        assert running.run(plan.cells[0])[0].cost is None
    second, third = (running.run(planned)[0].cost for planned in plan.cells[1:])
    assert second is not None
    assert third is not None
    assert (second.measured_in, third.measured_in) == (None, plan.cells[1].cell_id)


def test_a_cell_that_runs_streamed_among_others_is_measured_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "dtype=bfloat16", "load_strategy=dtype_at_load,device_map")
    running = Runner(plan.environment, verdict=False, say=print)
    first, short = plan.cells
    resident = running.run(first)[0].cost
    assert resident is not None
    forward = nn.Embedding.forward

    def out_of_memory(self: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if Source.of(self.weight) is None:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, ids)

    with monkeypatch.context() as patched:
        patched.setattr(nn.Embedding, "forward", out_of_memory)
        record = running.run(short)[0]
    assert record.without_effect["weights"].endswith("streamed, which the cost is of")
    assert record.cost is not None
    assert record.cost.measured_in is None
    again = running.run(first)[0].cost
    assert again is not None
    assert again.latency_ms == resident.latency_ms


def test_each_cell_is_timed_where_it_is_said_how_often(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "load_strategy=dtype_at_load,device_map")
    first, second = costs(plan, 2)
    assert first.measured_in is second.measured_in is None
    assert first.latency_ms != second.latency_ms


@pytest.mark.parametrize(
    "axis", ["numerics=default,deterministic", "layout=packed,single", "positions=explicit,implicit"]
)
def test_other_flags_and_calls_are_learned_apart(tmp_path: Path, learned: list[str], axis: str) -> None:
    assert len(kernels(plan_of(tmp_path, axis))) == 2
    assert learned.count("kernels") == 2
