"""Two models side by side give what two recorded runs give, whatever the bound on what waits."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import Tensor, nn

from sweeper.capture import ModuleOutput, capture
from sweeper.config import Layout, Positions
from sweeper.errors import AlignmentError
from sweeper.layout import Forward, lay_out
from sweeper.metrics.pair import measure

pytest.importorskip("greenlet")
from sweeper.in_step import SideBySide


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


@pytest.mark.parametrize("waiting_bytes", [1, 1000, 2**30])
def test_equals_recorded_runs(models: tuple[Model, Model], waiting_bytes: int) -> None:
    batches = [forward([[1, 2, 3], [4]]), forward([[5, 6], [7, 8]]), forward([[9, 10, 11, 12]])]
    reference, candidate = (recorded(model, batches) for model in models)
    with torch.inference_mode(), SideBySide(*models, waiting_bytes=waiting_bytes) as together:
        for batch in batches:
            outputs = together.run(batch, batch)
            assert torch.equal(outputs[0], models[0](**batch.inputs))
            assert torch.equal(outputs[1], models[1](**batch.inputs))
    figures = together.finish()
    assert list(figures) == list(reference)
    for name, measures in figures.items():
        alone = measure(reference[name], candidate[name])
        close = {"mean_abs", "rms", "rel_l2", "sqnr_db", "cosine"}
        assert measures.model_dump(exclude=close) == alone.model_dump(exclude=close), name
        assert measures.rel_l2 == pytest.approx(alone.rel_l2, rel=1e-12)


def test_nothing_is_hooked_behind_the_context(models: tuple[Model, Model]) -> None:
    with SideBySide(*models):
        pass
    assert not any(module._forward_hooks for model in models for module in model.modules())


@pytest.mark.parametrize("blocks", [(2, 3), (3, 2)])
def test_another_order_of_modules_is_an_error(blocks: tuple[int, int]) -> None:
    batch = forward([[1, 2, 3]])
    with (
        torch.inference_mode(),
        SideBySide(*(Model(number) for number in blocks), waiting_bytes=1) as together,
        pytest.raises(AlignmentError, match=r"blocks\.2\.up|behind the reference's last"),
    ):
        together.run(batch, batch)


def test_an_error_of_one_side_is_raised_and_the_next_batch_runs(models: tuple[Model, Model]) -> None:
    batch = forward([[1, 2, 3]])
    wrong = dataclasses.replace(batch, inputs={"input_ids": torch.tensor([[1, 2, 99]])})
    with torch.inference_mode(), SideBySide(*models, waiting_bytes=1) as together:
        for pair in ((batch, wrong), (wrong, batch)):
            with pytest.raises(IndexError):
                together.run(*pair)
        together.run(batch, batch)
    assert together.finish()["embed"].numel > 0
