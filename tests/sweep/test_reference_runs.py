"""Cells that run in step have models of their own on the same tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from sweeper.config import Attention, Cell, Dtype
from sweeper.environment import environment
from sweeper.sweep.runner import Runner
from tests.composing import request_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def test_cells_of_the_same_weights_have_models_of_their_own_and_the_last_is_no_copy(tmp_path: Path) -> None:
    (composed,) = request_of("checkpoint=tiny_llama", "wandb.mode=disabled", f"output_dir={tmp_path}").cells

    def cell(attention: Attention, dtype: Dtype = Dtype.FLOAT32) -> Cell:
        return composed.model_copy(update={"attention": attention, "dtype": dtype})

    cells = [cell(Attention.EAGER), cell(Attention.SDPA, Dtype.BFLOAT16), cell(Attention.SDPA), cell(Attention.EAGER)]
    running = Runner(environment("cpu"), say=print)
    models: list[Any] = running._reference_runs._models_of_their_own(cells)
    assert [model.config._attn_implementation for model in models] == ["eager", "sdpa", "sdpa", "eager"]
    assert len(set(map(id, models))) == 4
    first, other, second, last = models
    assert [running._held.loaded(asked).model for asked in cells[1::2]] == [other, last]
    for copied in (first, second):
        assert all(map(torch.Tensor.is_set_to, copied.parameters(), last.parameters()))
        assert not set(map(id, copied.modules())) & set(map(id, last.modules()))
