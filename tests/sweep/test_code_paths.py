"""What is learned once is what each cell would have learned itself, and is learned again where other code runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper.comparator import forwards
from sweeper.config import Attention
from sweeper.environment import environment
from sweeper.models import attention
from sweeper.planning.plan import Plan, make_plan
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


def test_where_nothing_is_timed_no_forward_is_run_beside_the_compared_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "dtype=bfloat16", "load_strategy=autocast,dtype_at_load")
    bare = []
    run_forwards = forwards.run_forwards
    for module in (cost, code_paths):
        monkeypatch.setattr(module, "run_forwards", lambda *called: bare.append(called) or run_forwards(*called))
    assert kernels(plan, latency_repeats=0) == [KERNELS[planned.cell.attention] for planned in plan.cells]
    assert not bare


@pytest.mark.parametrize(
    "axis", ["numerics=default,deterministic", "layout=packed,single", "positions=explicit,implicit"]
)
def test_other_flags_and_calls_are_learned_apart(tmp_path: Path, learned: list[str], axis: str) -> None:
    assert len(kernels(plan_of(tmp_path, axis))) == 2
    assert learned.count("kernels") == 2
