"""Floors of modules that are run within one another, on the same arguments: the same runs, the same floors."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.side import Side, sides
from sweeper.verdict.examination import Examination
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_floor import ModuleFloor, Noise
from sweeper.verdict.module_runs import Kept, capture, floats, merged
from tests.small_models import llama, padded_left

NOISE = Noise(state_eps=2.0**-8, inputs=True)


def floor_of(side: Side, kept: Kept, module: nn.Module, noise: Noise, output: list[Tensor | None]) -> ModuleFloor:
    arguments = functools.partial(merged, kept, kept.args, kept.kwargs, same_backend=True)
    return ModuleFloor(noise, module, arguments, output, side.calls[0])


@pytest.mark.parametrize("enough", [math.inf, 1e-12, 1e-3], ids=["to the end", "few suffice", "as far as it takes"])
@pytest.mark.parametrize("state_eps", [0.0, 2.0**-8])
def test_a_base_model_has_the_floor_that_its_own_runs_give(enough: float, state_eps: float) -> None:
    model = llama()
    side, _ = sides(model, model, padded_left())
    kept = capture(side, {"", "model"}).kept
    ran: list[nn.Module] = []
    model.model.register_forward_hook(lambda module, *_: ran.append(module))

    def floor(name: str) -> ModuleFloor:
        call, noise = kept[0, name, 0], Noise(state_eps=state_eps, inputs=True)
        return floor_of(side, call, model.get_submodule(name), noise, call.output)

    alone = floor("model").level(enough)
    ran.clear()
    whole, base = floor(""), floor("model")
    whole.within = [base]
    assert whole.level(enough) > 0
    runs = len(ran)
    assert base.level(enough) == alone
    assert len(ran) == runs  # none of its own


class Chooses(nn.Module):
    """Calls an embedding with places that it computes of numbers: nudged, they may be others."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(64, 8)
        self.product = nn.Linear(8, 64)

    def forward(self, places: Tensor) -> Tensor:
        nudged = self.product(self.table.weight[places]).argmax(-1)
        return self.table(nudged)


def test_a_run_in_which_it_is_given_something_else_is_none_of_its_own() -> None:
    torch.manual_seed(0)
    module, places = Chooses(), torch.arange(64)[None]
    with torch.no_grad():
        module.product.weight.mul_(1e-7)  # next to a tie
        module.product.bias.zero_()
    side, _ = sides(module, module, {"places": places})
    kept = capture(side).kept

    def floor(name: str) -> ModuleFloor:
        call = kept[0, name, 0]
        return floor_of(side, call, module.get_submodule(name), NOISE, call.output)

    alone = floor("table").level()
    whole, table = floor(""), floor("table")
    whole.within = [table]
    with torch.no_grad():
        assert whole.level() > 0.1  # it chose otherwise
        assert table.level() == pytest.approx(alone, rel=0.2)


class GoesOn(nn.Module):
    """Calls a module that raises, and another one in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({"raises": Raises(), "other": nn.Embedding(64, 8), "last": nn.Embedding(64, 8)})

    def forward(self, places: Tensor) -> Tensor:
        try:
            hidden = self.body["raises"](places)
        except ValueError:
            hidden = self.body["other"](places)
        return hidden + self.body["last"](places)


class Raises(nn.Module):
    def forward(self, places: Tensor) -> Tensor:
        raise ValueError(f"not {tuple(places.shape)}")


def examined(side: Side, other: Side) -> dict[str, OwnError]:
    captured = capture(side)
    return Examination(captured.kept, side.calls, NOISE, same_backend=True, all_floors=True).run(other).found


def test_what_lies_around_a_module_that_raises_is_examined_all_the_same() -> None:
    torch.manual_seed(0)
    model, other = GoesOn(), GoesOn()
    found = examined(*sides(model, other, {"places": torch.arange(64)[None]}))
    assert found.keys() == {"", "body.other", "body.last"}
    assert all(one.floor > 0 and one.own > 1 for one in found.values())


def test_floors_of_a_whole_model_are_those_of_the_modules_alone() -> None:
    """Whatever waits for what: embedding, base model and head."""
    reference, candidate = llama(), llama(torch.bfloat16)
    side, other = sides(reference, candidate, padded_left())
    found = examined(side, other)
    kept = capture(side).kept
    for name in ("", "model", "model.embed_tokens"):
        call, module = kept[0, name, 0], candidate.get_submodule(name)
        with torch.no_grad():
            output = floats(module(*call.args, **call.kwargs))
            alone = floor_of(side, call, module, NOISE, output).level()
        assert found[name].floor == pytest.approx(alone, rel=0.3), name
        assert math.isfinite(alone)
