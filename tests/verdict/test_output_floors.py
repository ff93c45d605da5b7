"""The runs that measure the floor of the outputs tell that of what is most of the model, too."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.side import sides
from sweeper.verdict import examination, output_floors
from sweeper.verdict.comparison import Comparison, compare_sides
from sweeper.verdict.module_floor import Noise
from sweeper.verdict.reference_evidence import ReferenceEvidence
from tests.small_models import llama, padded_left

BF16 = torch.bfloat16
IDS = {"ids": torch.arange(32)[None]}


@pytest.fixture(autouse=True)
def _every_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a module is off, its floor is asked for."""
    monkeypatch.setattr(examination, "_LEAST_FLOOR", 0.0)
    monkeypatch.setattr(examination, "_LEAST_NUDGED", 0.0)


@pytest.fixture
def nudged(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The modules that are run for floors of their own."""
    seen: list[nn.Module] = []
    floor = Noise.floor

    def noted(self: Noise, module: nn.Module, *arguments: Any) -> float:
        seen.append(module)
        return floor(self, module, *arguments)

    monkeypatch.setattr(Noise, "floor", noted)
    return seen


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """The models that are run under nudges of their modules' results, by runs that tell more than the outputs."""
    seen: list[nn.Module] = []
    sample = output_floors.output_floor_sample

    def noted(side: Any, *arguments: Any, **more: Any) -> float:
        seen.append(side.model)
        return sample(side, *arguments, **more)

    monkeypatch.setattr(output_floors, "output_floor_sample", noted)
    return seen


def deciding(reference: nn.Module, candidate: nn.Module, inputs: Any, evidence: ReferenceEvidence | None = None) -> Any:
    return compare_sides(*sides(reference, candidate, inputs), evidence, full=False)


def test_what_is_most_of_the_model_needs_no_nudges_of_its_own(nudged: list[nn.Module], runs: list[nn.Module]) -> None:
    reference, candidate = llama(), llama(BF16)
    compared: Comparison = deciding(reference, candidate, padded_left())
    assert compared.verdict.kind == "rounding"
    assert runs == [candidate]  # its dtype is the coarser one
    assert candidate.model.layers[1] in nudged
    assert not {candidate, candidate.model} & set(nudged)
    # the model gives the outputs: its floor is how far the first nudges move them
    assert compared.own[""].floor == compared.floor.nudged[0]
    assert 0 < compared.own["model"].floor < 0.1


def test_a_reference_that_is_nudged_first_is_nudged_once_for_all(runs: list[nn.Module]) -> None:
    reference, evidence = llama(), ReferenceEvidence()
    first = deciding(reference, llama(attention="sdpa"), padded_left(), evidence)
    second = deciding(reference, llama(attention="sdpa"), padded_left(), evidence)
    assert runs == [reference]
    for compared in (first, second):
        assert compared.verdict.kind == "rounding"
        assert compared.own[""].floor == compared.floor.nudged[0] > compared.own[""].own / 4
        assert compared.own["model"].floor > 0


class Base(nn.Module):
    """Gives more in bfloat16, by a share."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.table, self.layer, self.more = nn.Embedding(64, 16), nn.Linear(16, 16), more

    def forward(self, ids: Tensor) -> Tensor:
        hidden: Tensor = self.layer(self.table(ids))
        return hidden * (1 + self.more) if hidden.dtype is BF16 else hidden


class Headed(nn.Module):
    """Hides most of what its base model gives. Gives more itself in bfloat16, by a share."""

    def __init__(self, more: float, base: float) -> None:
        super().__init__()
        self.base, self.norm, self.head, self.more = Base(base), nn.LayerNorm(16), nn.Linear(16, 64), more

    def forward(self, ids: Tensor) -> Tensor:
        given: Tensor = self.head(self.norm(self.base(ids)))
        return given * (1 + self.more) if given.dtype is BF16 else given


class SetsAutocast(Headed):
    """Has what it gives, and its base model's, computed in bfloat16, as accelerate does."""

    def forward(self, ids: Tensor) -> Tensor:
        with torch.autocast("cpu", BF16):
            return super().forward(ids)


def headed(kind: type[Headed], more: float, base: float) -> nn.Module:
    torch.manual_seed(0)
    made = Headed(more, base).eval()
    made.__class__ = kind
    return made


@pytest.mark.parametrize("under_autocast", [False, True])
@pytest.mark.parametrize(("name", "more", "base"), [("", 0.2, 0.0), ("base", 0.0, 0.2)])
def test_a_fault_above_those_floors_is_found_by_floors_of_its_own(
    name: str, more: float, base: float, under_autocast: bool, nudged: list[nn.Module]
) -> None:
    reference = headed(Headed, more, base)
    candidate = headed(SetsAutocast, more, base) if under_autocast else copy.deepcopy(reference).to(BF16)
    compared: Comparison = deciding(reference, candidate, IDS)
    assert compared.verdict.kind == "semantic", compared
    assert name in [one.name for one in compared.measured.beyond]
    assert candidate.get_submodule(name) in nudged
