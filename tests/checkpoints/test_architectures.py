"""`scripts/architectures.py` on the few families that tell the most; the whole list is run by hand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from scripts import architectures
from scripts.architectures import Architecture, Result, run_all
from sweeper.sweep import bare

TELLING = [architecture for architecture in architectures.architectures() if architecture.ci]
FEWER = ["dtype=float32,bfloat16"]  # float16 tells nothing new of a family
UNLIKE_SDPA = {"mamba"}


@pytest.fixture(autouse=True)
def _outputs() -> Iterator[None]:
    measure = bare.measure_cost
    architectures.spy_on_outputs()
    yield
    bare.measure_cost = measure


@pytest.fixture(scope="module", params=TELLING, ids=lambda architecture: architecture.name)
def results(request: pytest.FixtureRequest) -> tuple[Architecture, list[Result]]:
    architectures.spy_on_outputs()
    return request.param, list(run_all([request.param], architectures.GRIDS, check_bits=True, more=FEWER))


def test_every_cell_runs_as_the_plain_call_would_or_says_why_not(results: tuple[Architecture, list[Result]]) -> None:
    architecture, grids = results
    for result in grids:
        assert not result.counts["failed"], result.reasons
        assert not result.unlike
        assert result.counts["ok"]
        assert all("\n" not in reason for reason in result.reasons)
        refused = any(reason.startswith("sdpa cannot be used: transformers says") for reason in result.reasons)
        assert refused == (architecture.name in UNLIKE_SDPA)


def test_the_list_is_long_and_names_every_family() -> None:
    everything = architectures.architectures()
    assert len(everything) >= 50
    assert len({architecture.name for architecture in everything}) == len(everything)
    assert {architecture.family for architecture in everything} == set(architectures.TITLES)
    assert len(TELLING) >= 8


def test_the_table_numbers_each_reason_once() -> None:
    llama, bert = (Architecture(name, name, f"{name}Model", family, {}) for name, family in FAMILIES)
    grid = architectures.GRIDS[0]
    refused = "sdpa cannot be used: {}Model does not"
    results = [
        Result(of, grid, Counter(ok=2, unsupported=1), Counter([refused.format(of.name)]), 0.0, [])
        for of in (llama, bert)
    ]
    page = architectures.table(results, "the command")
    assert "| llama | llamaModel | 2 ok, 1 unsupported |  | 1 |" in page
    assert "| bert | bertModel | 2 ok, 1 unsupported |  | 1 |" in page
    assert page.endswith("1. sdpa cannot be used: the class does not")


FAMILIES = (("llama", "causal"), ("bert", "masked"))
