"""How many bare forwards a cell takes, and what they tell."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.forwards import run_forwards, side_of
from sweeper.comparator.side import Call
from sweeper.config import Attention, Cell, LoadStrategy
from sweeper.records.cell import Cost
from sweeper.sweep import cost
from sweeper.sweep.cost import measure_cost, warm_up
from tests import small_models
from tests.composing import request_of

NAN = float("nan")


@pytest.fixture(scope="module")
def cell() -> Cell:
    (cell,) = request_of(
        "checkpoint=tiny_llama", "dtype=float32", "attention=eager", "layout=padded_left", "wandb.mode=disabled"
    ).cells
    return cell


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model: nn.Module = small_models.llama()
    return model


@pytest.fixture
def batch(cell: Cell, model: nn.Module) -> list[Call]:
    return list(side_of(cell, model, [[5, 6, 7], [8, 9]], [[0, 1]]).calls)


@pytest.fixture
def calls(model: nn.Module) -> Iterator[list[nn.Module]]:
    """One entry a forward of the model."""
    made: list[nn.Module] = []
    handle = model.register_forward_pre_hook(lambda module, _inputs: made.append(module))
    yield made
    handle.remove()


def measured(cell: Cell, model: nn.Module, batch: list[Call], captured_NF: Tensor, **options: Any) -> Cost:
    with torch.inference_mode():
        return measure_cost(cell, model, batch, captured_NF, **{"repeats": 1, **options})


def output(model: nn.Module, batch: list[Call]) -> Tensor:
    with torch.inference_mode():
        return run_forwards(model, batch)


@pytest.mark.parametrize(
    ("repeats", "enough_ms", "forwards"), [(1, 1e9, 1), (3, 0, 3), (7, 0, 7), (None, 0, 1), (None, 1e9, 5)]
)
def test_one_forward_serves_for_all_and_more_only_for_the_median(
    cell: Cell,
    model: nn.Module,
    batch: list[Call],
    calls: list[nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    repeats: int | None,
    enough_ms: float,
    forwards: int,
) -> None:
    captured_NF = output(model, batch)
    calls.clear()
    monkeypatch.setattr(cost, "ENOUGH_MS", enough_ms)
    found = measured(cell, model, batch, captured_NF, repeats=repeats)
    assert len(calls) == forwards
    assert (found.repeatable, found.peak_memory_gib) == (True, None)
    assert found.latency_ms is not None
    assert found.latency_ms > 0


def test_no_forward_is_run_where_none_is_asked_for(
    cell: Cell, model: nn.Module, batch: list[Call], calls: list[nn.Module]
) -> None:
    captured_NF = output(model, batch)
    calls.clear()
    assert measured(cell, model, batch, captured_NF, repeats=0) == Cost()
    assert not calls


@pytest.mark.parametrize(
    ("captured", "again", "repeatable"),
    [(1.0, 1.0, True), (1.0, 2.0, False), (NAN, NAN, True), (NAN, 1.0, False), (0.0, -0.0, True)],
)
def test_the_timed_forward_is_compared_with_the_captured_one(
    cell: Cell, model: nn.Module, batch: list[Call], captured: float, again: float, repeatable: bool
) -> None:
    captured_NF = output(model, batch).clone()
    captured_NF[-1, -1] = captured

    def put(_module: nn.Module, _inputs: Any, made: Any) -> None:
        made.logits[1, -1, -1] = again  # the last text's last token, behind its pad

    handle = model.register_forward_hook(put)
    try:
        assert measured(cell, model, batch, captured_NF).repeatable is repeatable
    finally:
        handle.remove()


@pytest.mark.parametrize(
    ("choice", "forwards"),
    [
        ({}, 0),
        ({"load_strategy": LoadStrategy.AUTOCAST}, 1),
        ({"attention": Attention.FLEX_ATTENTION}, 1),
    ],
)
def test_only_what_compiles_or_casts_first_is_warmed_up(
    cell: Cell, model: nn.Module, batch: list[Call], calls: list[nn.Module], choice: dict[str, Any], forwards: int
) -> None:
    warm_up(cell.model_copy(update=choice), model, batch)
    assert len(calls) == forwards
