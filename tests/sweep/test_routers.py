"""The routers of a mixture: which of them send how many tokens elsewhere is among a cell's figures."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sweeper.comparator.side import sides
from sweeper.records.cell import RouterFigures
from sweeper.reports.cell import conditions
from sweeper.sweep.routers import is_mixture, router_figures
from sweeper.verdict.discrete_choices import run_with_selections
from tests.sinks.records import record
from tests.tiny_folders import call, plain


@pytest.mark.parametrize(("name", "mixture"), [("mixtral", True), ("qwen3_moe", True), ("llama", False)])
def test_a_mixture_is_known_by_its_config(name: str, mixture: bool) -> None:
    assert is_mixture(plain(name)) is mixture


def routers_of(reference: nn.Module, candidate: nn.Module) -> tuple[RouterFigures, ...]:
    return router_figures(*map(run_with_selections, sides(reference, candidate, call())))


def test_a_router_that_was_turned_round_sends_tokens_elsewhere() -> None:
    reference, candidate = (plain("mixtral", dtype=torch.float32) for _ in range(2))
    assert {router.flipped for router in routers_of(reference, candidate)} == {0.0}
    last = len(candidate.model.layers) - 1
    with torch.no_grad():
        candidate.model.layers[last].mlp.gate.weight.neg_()
    routers = routers_of(reference, candidate)
    assert [router.layer for router in routers] == list(range(last + 1))
    assert {router.flipped for router in routers[:-1]} == {0.0}
    assert routers[-1].flipped > 0.5


def test_the_report_of_a_cell_says_how_many_and_which() -> None:
    routers = tuple(RouterFigures(module=f"layers.{layer}.gate", layer=layer, flipped=layer / 4) for layer in range(3))
    rows = dict(conditions(record(routers=routers)).rows)
    assert rows["routers that send tokens to other experts"] == "2 of 3, most layers.2.gate: 0.5000 of tokens"
    rows = dict(conditions(record(routers=routers[:1])).rows)
    assert rows["routers that send tokens to other experts"] == "none of 1"
