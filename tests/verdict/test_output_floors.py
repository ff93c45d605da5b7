"""The runs that measure the floor of the outputs tell that of what is most of the model, too."""

from __future__ import annotations

import copy
from types import SimpleNamespace
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


@pytest.fixture
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


@pytest.mark.usefixtures("_every_floor")
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


@pytest.mark.usefixtures("_every_floor")
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


@pytest.mark.usefixtures("_every_floor")
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


class Twice(nn.Module):
    """Calls its base model on ids and then on what that gave, where it gives more in bfloat16, by a share."""

    def __init__(self, more: float) -> None:
        super().__init__()
        self.base, self.norm, self.head = Again(more), nn.LayerNorm(16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.base(hidden=self.base(ids=ids))))


class Again(nn.Module):
    def __init__(self, more: float) -> None:
        super().__init__()
        self.table, self.layer, self.kept, self.more = nn.Embedding(64, 16), nn.Linear(16, 16), nn.Dropout(), more

    def forward(self, ids: Tensor | None = None, hidden: Tensor | None = None) -> Tensor:
        if hidden is None:
            return self.kept(self.layer(self.table(ids)))
        given: Tensor = self.layer(hidden)
        return given * (1 + self.more) if given.dtype is BF16 else given


@pytest.mark.usefixtures("_every_floor")
def test_a_call_that_has_its_floor_is_not_lost_for_one_that_waits() -> None:
    torch.manual_seed(0)
    reference = Twice(0.2).eval()
    compared: Comparison = deciding(reference, copy.deepcopy(reference).to(BF16), IDS)
    assert [one.name for one in compared.measured.beyond] == ["base"]


class Places(nn.Module):
    """What is exact, as numbers of the model's dtype: 0, 1, 2 and so on, or 1 where there is text."""

    def __init__(self, *, ones: bool) -> None:
        super().__init__()
        self.none, self.ones = nn.Dropout(), ones

    def forward(self, like: Tensor) -> Tensor:
        columns = torch.arange(like.shape[1])
        return (columns >= 0).to(like.dtype) if self.ones else columns.to(like.dtype)


class Turned(nn.Module):
    """Turns its features by angles that collide in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.table, self.head = Places(ones=False), nn.Embedding(256, 16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        angles = self.places(hidden)[:, None] * (1 / 2 ** (torch.arange(8) / 8)).to(hidden.dtype)
        x, y = hidden.chunk(2, -1)
        return self.head(torch.cat([x * angles.cos() - y * angles.sin(), x * angles.sin() + y * angles.cos()], -1))


class Masked(nn.Module):
    """Leaves out what its mask does not name. Gives more in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.ones, self.table, self.head = Places(ones=True), nn.Embedding(256, 16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        given: Tensor = self.head(hidden.masked_fill((self.ones(hidden) != 1)[:, None], 0.0))
        return given * 1.3 if given.dtype is BF16 else given


class LooksUp(nn.Module):
    """Reads a table at what a module counts, which ends where the table does. Gives more in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.table, self.head = Places(ones=False), nn.Embedding(256, 16), nn.Linear(16, 64)
        self.at = nn.Embedding(128, 16)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        given: Tensor = self.head(hidden + self.at(self.places(hidden).round().long()))
        return given * 1.3 if given.dtype is BF16 else given


class Nested(nn.Module):
    """One layer in many containers, each of which hands on what it gives. Gives more in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(256, 16), nn.Sequential(nn.Linear(16, 16))
        for _ in range(40):
            self.layer = nn.Sequential(self.layer)

    def forward(self, ids: Tensor) -> Tensor:
        given: Tensor = self.layer(self.table(ids))
        return given * 1.06 if given.dtype is BF16 else given


@pytest.mark.parametrize("kind", [Turned, Masked, LooksUp, Nested])
def test_a_fault_does_not_hide_behind_nudges_of_what_is_exact(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    reference = kind().eval()
    compared: Comparison = deciding(reference, copy.deepcopy(reference).to(BF16), {"ids": torch.arange(128)[None]})
    assert compared.verdict.kind == "semantic", compared
    assert [one.name for one in compared.measured.beyond] == [""]


class Far(nn.Linear):
    """Small differences of large numbers."""

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden) * 3e-3 + 100


class Upstream(nn.Module):
    """A base model behind features of which little is left: what rounds them is no floor of its own."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation=backend)
        self.table, self.features, self.base = nn.Embedding(64, 16), Far(16, 16), Layers(self.config)

    def forward(self, ids: Tensor) -> Tensor:
        return self.base(self.features(self.table(ids)) - 100)


class Layers(nn.Module):
    """Gives more with another attention kernel."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config, self.layers = config, nn.Sequential(*(nn.Linear(16, 16) for _ in range(5)))

    def forward(self, hidden: Tensor) -> Tensor:
        given: Tensor = self.layers(hidden)
        kernel = self.config._attn_implementation == "sdpa" and given.dtype is torch.float32
        return given * (1 + 6e-6) if kernel else given


def test_a_base_model_takes_no_floor_from_what_lies_before_it() -> None:
    made = []
    for backend in ("eager", "sdpa"):
        torch.manual_seed(0)
        made.append(Upstream(backend).eval())
    compared: Comparison = deciding(*made, IDS)
    assert compared.verdict.kind == "semantic", compared
    assert "base" in [one.name for one in compared.measured.beyond]


class Checks(nn.Module):
    """Raises where one product has two results, as it has where operations are nudged."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer, self.head = nn.Embedding(64, 16), nn.Linear(16, 16), nn.Linear(16, 64)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.table(ids)
        first, second = (hidden @ self.layer.weight for _ in range(2))
        if not torch.equal(first, second):
            raise ValueError("one product has two results")
        return self.head(self.layer(hidden))


@pytest.mark.usefixtures("_every_floor")
def test_a_model_that_refuses_nudged_operations_is_not_judged_by_a_floor_that_did_not_suffice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    reference = Checks().eval()
    candidate = copy.deepcopy(reference).to(BF16)
    monkeypatch.setattr(output_floors, "output_floor_sample", lambda *_, **__: 0.0)  # nothing is told
    compared: Comparison = deciding(reference, candidate, IDS)
    assert "" not in compared.own
    assert "" not in [one.name for one in compared.measured.beyond]


@pytest.mark.usefixtures("_every_floor")
def test_what_one_candidate_asks_for_changes_nothing_for_the_next() -> None:
    reference = llama()
    makes = [lambda: llama(attention="sdpa"), lambda: llama(BF16), lambda: llama(BF16, "sdpa")]
    alone = [deciding(reference, make(), padded_left()) for make in makes]
    for order in ((0, 1, 2), (2, 1, 0)):
        evidence = ReferenceEvidence()
        for place in order:
            compared = deciding(reference, makes[place](), padded_left(), evidence)
            assert (compared.own, compared.floor) == (alone[place].own, alone[place].floor)
