"""Two models side by side give what two recorded runs give, whatever the bound on what waits."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.hooks import ModuleOutput, capture, steady_in_call
from sweeper.comparator.in_turns import InStep, Turn, twin
from sweeper.comparator.module_pairs import ModulePairs
from sweeper.config import Layout, Positions
from sweeper.errors import AlignmentError
from sweeper.inputs.layout import Forward, lay_out
from sweeper.metrics.pair import finish, measure
from sweeper.records.cell import PairMeasures


class Block(nn.Module):
    """Overwrites the output of its own first module, as an in-place activation does."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.down = nn.Linear(8, 8)

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD + self.down(self.up(hidden_BTD).relu_())


class Model(nn.Module):
    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden_BTD = self.embed(input_ids)
        for block in self.blocks:
            hidden_BTD = block(hidden_BTD)
        return hidden_BTD


@pytest.fixture
def models() -> tuple[Model, Model]:
    torch.manual_seed(0)
    reference = Model()
    candidate = copy.deepcopy(reference).to(torch.bfloat16)
    return reference, candidate


def forward(texts: list[list[int]]) -> Forward:
    indices = range(len(texts))
    options = {"layout": Layout.PADDED_RIGHT, "positions": Positions.IMPLICIT, "pad_id": 0, "device": "cpu"}
    return lay_out(texts, indices, **options)[0]


def recorded(model: Model, batches: list[Forward]) -> dict[str, Tensor]:
    pieces: dict[str, list[Tensor]] = {}

    def take(output: ModuleOutput) -> None:
        pieces.setdefault(output.name, []).append(output.tensor_NF.clone())

    with torch.inference_mode(), capture(model, take) as running:
        for batch in batches:
            running.begin(batch)
            model(**batch.inputs)
    return {name: torch.cat(tensors) for name, tensors in pieces.items()}


def together(
    models: Sequence[nn.Module],
    batches: Sequence[tuple[Forward, Forward]],
    *,
    turn_bytes: int,
    steady: Sequence[frozenset[str]] = (frozenset(), frozenset()),
) -> tuple[list[tuple[Tensor, Tensor]], dict[str, PairMeasures]]:
    """What both models give for each batch, run in turns, and the figures of their modules."""
    pairs = ModulePairs(steady=steady[1])
    in_step = InStep([pairs], steady=steady[0], turn_bytes=turn_bytes)
    outputs = []
    take = functools.partial(in_step.take, 0)
    with capture(models[0], in_step.give) as left, capture(models[1], take) as right, torch.inference_mode():
        for reference, candidate in batches:
            left.begin(reference)
            right.begin(candidate)
            given, taken = in_step.run(
                lambda one=reference: models[0](**one.inputs), {0: lambda one=candidate: models[1](**one.inputs)}
            )
            if isinstance(taken[0], Exception):
                raise taken[0]
            outputs.append((given, taken[0]))
            pairs.end_batch()
    return outputs, dict(zip(pairs.modules, finish([pair.accumulator for pair in pairs.modules.values()]), strict=True))


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("turn_bytes", [1, 1000, 2**30])
def test_equals_recorded_runs(models: tuple[Model, Model], turn_bytes: int, learned: bool) -> None:
    batches = [forward([[1, 2, 3], [4]]), forward([[5, 6], [7, 8]]), forward([[9, 10, 11, 12]])]
    reference, candidate = (recorded(model, batches) for model in models)
    call = batches[0]
    steady = [steady_in_call(model, call, lambda model=model: model(**call.inputs)) for model in models]
    learned_of = {"steady": steady} if learned else {}
    outputs, figures = together(models, [(batch, batch) for batch in batches], turn_bytes=turn_bytes, **learned_of)
    for batch, pair in zip(batches, outputs, strict=True):
        assert all(torch.equal(output, model(**batch.inputs)) for output, model in zip(pair, models, strict=True))
    assert list(figures) == list(reference)
    for name, measures in figures.items():
        alone = measure(reference[name], candidate[name])
        close = {"mean_abs", "rms", "rel_l2", "sqnr_db", "cosine"}
        assert measures.model_dump(exclude=close) == alone.model_dump(exclude=close), name
        assert measures.rel_l2 == pytest.approx(alone.rel_l2, rel=1e-12)


class Island(nn.Module):
    """Turns autocast off around a module, as transformers does around what needs float32."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.island, self.last = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, hidden_BTD: Tensor) -> Tensor:
        hidden_BTD = self.first(hidden_BTD)
        with torch.autocast("cpu", enabled=False):
            hidden_BTD = self.island(hidden_BTD.float())
        return self.last(hidden_BTD)


@pytest.mark.parametrize("turn_bytes", [1, 2**30])
def test_each_side_keeps_the_conditions_of_its_own(turn_bytes: int) -> None:
    torch.manual_seed(0)
    model, places = Island(), forward([[1, 2, 3]])
    hidden_BTD = torch.randn(1, 3, 8)
    conditions: tuple[Turn, Turn] = nullcontext, lambda: torch.autocast("cpu", torch.bfloat16)
    pairs = ModulePairs()
    in_step = InStep([pairs], conditions=conditions, turn_bytes=turn_bytes)
    models, take = (model, twin(model)), functools.partial(in_step.take, 0)
    with capture(models[0], in_step.give) as left, capture(models[1], take) as right, torch.inference_mode():
        left.begin(places)
        right.begin(places)
        given, taken = in_step.run(lambda: models[0](hidden_BTD), {0: lambda: models[1](hidden_BTD)})
        pairs.end_batch()
    assert not torch.is_autocast_enabled("cpu")
    dtypes = {name: (pair.reference_dtype, pair.candidate_dtype) for name, pair in pairs.modules.items()}
    assert dtypes == {
        "first": ("float32", "bfloat16"),
        "island": ("float32", "float32"),
        "last": ("float32", "bfloat16"),
    }
    for output, around in zip((given, taken[0]), conditions, strict=True):
        with around(), torch.inference_mode():
            assert torch.equal(output, model(hidden_BTD))


def test_a_twin_shares_all_tensors_and_has_structure_of_its_own() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    other = twin(model)
    assert all(mine is its for mine, its in zip(model.parameters(), other.parameters(), strict=True))
    assert all(mine is its for mine, its in zip(model.buffers(), other.buffers(), strict=True))
    other.register_forward_hook(lambda *_: None)
    other[0].out_features = 7
    assert (model._forward_hooks, model[0].out_features) == ({}, 2)


@pytest.mark.parametrize("blocks", [(2, 3), (3, 2)])
def test_other_modules_are_an_error(blocks: tuple[int, int]) -> None:
    batch = forward([[1, 2, 3]])
    with pytest.raises(AlignmentError, match=r"the (reference|candidate): blocks\.2, blocks\.2\.down, blocks\.2\.up"):
        together([Model(number) for number in blocks], [(batch, batch)], turn_bytes=1)


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_of_one_side_ends_the_other_and_is_raised(models: tuple[Model, Model], failing: int) -> None:
    batch = forward([[1, 2, 3]])
    wrong = dataclasses.replace(batch, inputs={"input_ids": torch.tensor([[1, 2, 99]])})
    with pytest.raises(IndexError):
        together(models, [(wrong, batch) if failing == 0 else (batch, wrong)], turn_bytes=1)
    assert not any(module._forward_hooks for model in models for module in model.modules())


@pytest.mark.parametrize("turn_bytes", [1, 1000, 2**30])
def test_candidates_of_one_run_are_compared_as_each_alone_and_one_may_fail(
    models: tuple[Model, Model], turn_bytes: int
) -> None:
    batch = forward([[1, 2, 3], [4]])
    reference, candidate = models
    other = copy.deepcopy(reference).to(torch.float16)
    _, alone = together([reference, candidate], [(batch, batch)], turn_bytes=turn_bytes)
    _, of_other = together([reference, other], [(batch, batch)], turn_bytes=turn_bytes)
    pairs = [ModulePairs() for _ in range(3)]
    in_step = InStep(pairs, turn_bytes=turn_bytes)
    wrong = dataclasses.replace(batch, inputs={"input_ids": torch.tensor([[1, 2, 99], [4, 0, 0]])})
    sides = (candidate, batch), (copy.deepcopy(candidate), wrong), (other, batch)
    with contextlib.ExitStack() as stack, torch.inference_mode():
        stack.enter_context(capture(reference, in_step.give)).begin(batch)
        for place, (model, inputs) in enumerate(sides):
            stack.enter_context(capture(model, functools.partial(in_step.take, place))).begin(inputs)
        runs = {place: lambda one=one: one[0](**one[1].inputs) for place, one in enumerate(sides)}
        _, taken = in_step.run(lambda: reference(**batch.inputs), runs)
    assert isinstance(taken[1], IndexError)
    for place, expected in ((0, alone), (2, of_other)):
        pairs[place].end_batch()
        ended = finish([pair.accumulator for pair in pairs[place].modules.values()])
        assert dict(zip(pairs[place].modules, ended, strict=True)) == expected


@pytest.mark.parametrize("turn_bytes", [1, 1000, 2**30])
def test_who_is_at_its_end_is_looked_at_while_others_go_on(models: tuple[Model, Model], turn_bytes: int) -> None:
    """On a GPU, whose work for the others does not wait for it."""
    batch = forward([[1, 2, 3], [4]])
    wrong = dataclasses.replace(batch, inputs={"input_ids": torch.tensor([[1, 2, 99], [4, 0, 0]])})
    inputs = [batch, batch, wrong, *[batch] * 4]
    sides = [copy.deepcopy(models[1]) for _ in inputs]
    conditions: list[int] = []
    told: list[str] = []

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        conditions.append(1)
        yield
        conditions.clear()

    def running(place: int) -> Tensor:
        output: Tensor = sides[place](**inputs[place].inputs)
        told.append(f"{place} ran")
        return output

    def ended(place: int, given: Tensor, taken: Tensor | Exception) -> None:
        assert isinstance(taken, IndexError) if place == 2 else taken.shape == given.shape  # type: ignore[union-attr]
        assert not conditions
        told.append(f"{place} ended")

    in_step = InStep([ModulePairs() for _ in sides], conditions=[turn] * (1 + len(sides)), turn_bytes=turn_bytes)
    with contextlib.ExitStack() as stack, torch.inference_mode():
        stack.enter_context(capture(models[0], in_step.give)).begin(batch)
        for place, model in enumerate(sides):
            stack.enter_context(capture(model, functools.partial(in_step.take, place))).begin(inputs[place])
        runs = {place: functools.partial(running, place) for place in reversed(range(len(sides)))}
        in_step.run(lambda: models[0](**batch.inputs), runs, ended)
    assert [word for word in told if "ended" in word] == [f"{place} ended" for place in (6, 5, 4, 3, 2, 1, 0)]
    if turn_bytes > 1:  # else the reference is behind its last output still when all candidates are at their ends
        assert told.index("6 ended") < told.index("0 ran")
    assert len(told) == 2 * len(sides) - 1


@pytest.mark.parametrize("turn_bytes", [1, 2**30])
def test_candidates_of_the_same_conditions_share_a_context_and_an_error_passes_through_it(
    models: tuple[Model, Model], turn_bytes: int
) -> None:
    batch = forward([[1, 2, 3], [4]])
    wrong = dataclasses.replace(batch, inputs={"input_ids": torch.tensor([[1, 2, 99], [4, 0, 0]])})
    now: list[str] = []
    begun: list[str] = []

    def turn(name: str) -> Turn:
        @contextlib.contextmanager
        def context() -> Iterator[None]:
            now.append(name)
            begun.append(name)
            try:
                yield
            except IndexError as error:
                raise ValueError(f"told by {name}") from error
            finally:
                now.remove(name)

        return context

    of_reference, one, other = map(turn, ("reference", "one", "other"))
    pairs = [ModulePairs() for _ in range(4)]
    in_step = InStep(pairs, conditions=[of_reference, one, other, one, one], turn_bytes=turn_bytes)
    inputs, expected = [batch, batch, wrong, batch], ["one", "other", "one", "one"]
    ran: list[tuple[int, list[str]]] = []

    def running(place: int, model: nn.Module) -> Tensor:
        output = model(**inputs[place].inputs)
        ran.append((place, [*now]))
        return output

    sides = [copy.deepcopy(models[1]) for _ in range(4)]
    with contextlib.ExitStack() as stack, torch.inference_mode():
        stack.enter_context(capture(models[0], in_step.give)).begin(batch)
        for place, model in enumerate(sides):
            stack.enter_context(capture(model, functools.partial(in_step.take, place))).begin(inputs[place])
        runs = {place: functools.partial(running, place, model) for place, model in enumerate(sides)}
        _, taken = in_step.run(lambda: models[0](**batch.inputs), runs)
    assert isinstance(taken[2], ValueError)
    assert str(taken[2]) == "told by one"
    assert sorted(ran) == [(place, [expected[place]]) for place in (0, 1, 3)]
    assert now == []
    if turn_bytes == 2**30:  # the third ends the context that it shares
        assert begun == ["reference", "one", "one", "other"]
    with torch.inference_mode():
        expected_BTD = models[1](**batch.inputs)
    assert all(torch.equal(taken[place], expected_BTD) for place in (0, 1, 3))


@pytest.mark.parametrize("at_turn", [1, 2])
def test_a_context_that_cannot_be_entered_ends_its_side_alone(models: tuple[Model, Model], at_turn: int) -> None:
    batch = forward([[1, 2, 3], [4]])
    turns = 0

    @contextlib.contextmanager
    def refused() -> Iterator[None]:
        nonlocal turns
        turns += 1
        if turns >= at_turn:
            if turns > 50:
                pytest.fail("the side is waited for")  # no Exception: that would be the side's
            raise ValueError("refused")
        yield

    in_step = InStep([ModulePairs(), ModulePairs()], conditions=[nullcontext, refused, nullcontext], turn_bytes=1)
    sides = [copy.deepcopy(models[1]) for _ in range(2)]
    with contextlib.ExitStack() as stack, torch.inference_mode():
        stack.enter_context(capture(models[0], in_step.give)).begin(batch)
        for place, model in enumerate(sides):
            stack.enter_context(capture(model, functools.partial(in_step.take, place))).begin(batch)
        runs = {place: functools.partial(model, **batch.inputs) for place, model in enumerate(sides)}
        _, taken = in_step.run(lambda: models[0](**batch.inputs), runs)
    assert turns == at_turn
    assert str(taken[0]) == "refused"
    assert isinstance(taken[1], Tensor)
