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


def test_shares_are_those_of_the_routers_scores_against_float64() -> None:
    """The experts by their scores in float64, and by those of a float32 copy whose routers were moved a little."""
    dtypes = (torch.float64, torch.float32)
    reference, candidate = (plain("mixtral", dtype=dtype, experts_implementation="eager") for dtype in dtypes)
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in candidate.model.layers:
            layer.mlp.gate.weight.add_(0.3 * layer.mlp.gate.weight.std() * torch.randn_like(layer.mlp.gate.weight))
    real_N, chosen = call()["attention_mask"].bool().flatten(), []
    for model in (reference, candidate):
        scores = model(**call(), output_router_logits=True).router_logits
        top = [layer_NE.topk(model.config.num_experts_per_tok).indices for layer_NE in scores]
        chosen.append([[set(experts) for experts in layer_NK[real_N].tolist()] for layer_NK in top])
    expected = [
        sum(one != other for one, other in zip(*layers, strict=True)) / len(layers[0])
        for layers in zip(*chosen, strict=True)
    ]
    assert 0 < sum(expected) < len(expected)
    assert [router.flipped for router in routers_of(reference, candidate)] == expected


def test_the_report_of_a_cell_says_how_many_and_which() -> None:
    routers = tuple(RouterFigures(module=f"layers.{layer}.gate", layer=layer, flipped=layer / 4) for layer in range(3))
    rows = dict(conditions(record(routers=routers)).rows)
    assert rows["routers that send tokens to other experts"] == "2 of 3, most layers.2.gate: 0.5000 of tokens"
    rows = dict(conditions(record(routers=routers[:1])).rows)
    assert rows["routers that send tokens to other experts"] == "none of 1"
