"""An operator alone is a cell: its figures are those of the same operation by torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from sweeper.checkpoints import operators, seeded
from sweeper.checkpoints.operators import Operation, OperatorConfig
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.records.cell import CellRecord
from sweeper.sweep.runner import Runner
from tests.composing import request_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(tmp_path: Path, *arguments: str) -> list[CellRecord]:
    request = request_of("inputs=nothing", "wandb.mode=disabled", f"output_dir={tmp_path}", *arguments)
    plan = make_plan(request, environment("cpu"))
    running = Runner(plan.environment, latency_repeats=0, verdict=False, say=print)
    return [running.run(planned)[0] for planned in plan.cells]


def operation(**geometry: Any) -> Any:
    torch.manual_seed(0)
    config = OperatorConfig(**geometry)
    config._attn_implementation = "eager"
    return Operation(config)


def test_each_operation_is_the_one_of_its_name() -> None:
    attention = operation(operation="attention", rows=5, width=8, heads=2).double()
    operands = [getattr(attention, name)[None] for name in ("query_HND", "key_HND", "value_HND")]
    expected = functional.scaled_dot_product_attention(*operands).transpose(1, 2)
    torch.testing.assert_close(attention().view(expected.shape), expected)
    norms = [operation(operation="norm", rows=5, width=8, implementation=name).double() for name in ("llama", "torch")]
    torch.testing.assert_close(norms[0](), norms[1]())
    product = operation(operation="matmul", rows=5, width=8, inner=3)
    assert torch.equal(product().view(5, 8), product.left_NK @ product.right_KD)
    alone = operation(operation="matmul", rows=5, width=8, inner=3, first=1, only_first_row=True)
    torch.testing.assert_close(alone().view(8), product().view(5, 8)[0])
    added = operation(operation="cast_add", rows=5, width=8, inner=3)
    rounded = (added.left_NK @ added.right_KD).bfloat16().float()
    assert torch.equal(added().view(5, 8), rounded + added.bias_D)
    with pytest.raises(ValueError, match="operation is one of attention, norm, matmul, cast_add"):
        operation(operation="convolution")


def test_outliers_are_rare_and_large() -> None:
    drawn = operation(operation="norm", rows=1000, width=100, entries="outliers").rows_ND
    assert 10 < drawn.abs().max() < 60
    assert (drawn.abs() > 6).double().mean() < 2e-3


def test_a_copy_that_other_code_drew_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = request_of("checkpoint=operator", "inputs=nothing", "wandb.mode=disabled").cells[0].checkpoint
    before, *_ = seeded.prepare(checkpoint, "cpu", print)
    changed = tmp_path / "operators.py"
    changed.write_text("# another\n")
    monkeypatch.setattr(operators, "__file__", str(changed))
    after, *_ = seeded.prepare(checkpoint, "cpu", print)
    assert before != after


def test_kernels_are_compared_with_float64(tmp_path: Path) -> None:
    reference = "reference={dtype:float64,attention:eager}"
    eager, math = run(tmp_path, "checkpoint=operator", "dtype=float16", "attention=eager,sdpa_math", reference)
    for record in (eager, math):
        assert record.reason is None, record.traceback
        assert record.output is not None
        assert record.output.numel == 512 * 64 * 4
        assert 1e-6 < record.output.rms < 1e-3
        assert record.first_divergence == "operation"
    assert eager.output is not None
    assert math.output is not None
    assert math.output.rms < eager.output.rms  # float16 throughout is worse than float32 inside


def test_two_norms_are_equal_in_three_of_four_elements(tmp_path: Path) -> None:
    (record,) = run(
        tmp_path, "checkpoint=operator_norm", "dtype=bfloat16", "reference={checkpoint:operator_norm_torch}"
    )
    assert record.output is not None
    assert 0.7 < record.output.equal_fraction < 0.8
