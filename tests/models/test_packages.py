"""Which packages a cell's id depends on: those that its values use, and no others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sweeper.config import Cell, parse
from sweeper.models import packages
from sweeper.models.packages import ADAPTERS, KERNELS
from sweeper.planning import plan as planning
from sweeper.planning.plan import CellIds
from tests.planning.test_unsupported import CELL

EVERYTHING = packages._EVERYTHING


def cell(**changes: Any) -> Cell:
    return parse(Cell, {**CELL, **changes})


def folder(path: Path, **config: Any) -> Cell:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    checkpoint = {"source": "folder", "name": "mine", "head": "base", "pooling": "mean", "path": str(path)}
    return cell(checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "llama"}, ()),
        ({"model_type": "llama", "quantization_config": {"quant_method": "torchao"}}, ("torchao",)),
        ({"model_type": "llama", "quantization_config": {"quant_method": "bitsandbytes_4bit"}}, ("bitsandbytes",)),
        ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, ("gptqmodel", "optimum")),
        ({"model_type": "llama", "quantization_config": {"quant_method": "of tomorrow"}}, EVERYTHING),
        ({"model_type": "mamba"}, KERNELS),
        ({"model_type": "of tomorrow"}, KERNELS),
        ({}, KERNELS),
    ],
)
def test_a_folder_uses_what_its_config_says(tmp_path: Path, config: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert packages.packages(folder(tmp_path, **config)) == expected


def test_an_adapter_uses_peft(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert packages.packages(folder(tmp_path, model_type="llama")) == ADAPTERS


def test_what_cannot_be_looked_at_may_use_anything(tmp_path: Path) -> None:
    checkpoint = {"name": "mine", "head": "base", "pooling": "mean"}
    hub = cell(checkpoint={**checkpoint, "source": "hub", "repo_id": "me/model"})
    absent = cell(checkpoint={**checkpoint, "source": "folder", "path": str(tmp_path / "none")})
    unreadable = folder(tmp_path)
    (tmp_path / "config.json").write_text("[")
    assert [packages.packages(one) for one in (hub, absent, unreadable)] == [EVERYTHING] * 3


@pytest.mark.parametrize(
    ("choices", "package"),
    [
        ({"attention": "flash_attention_2", "device": "cuda"}, "flash-attn"),
        ({"attention": "flash_attention_3", "device": "cuda"}, "flash-attn-3"),
        ({"attention": "flex_attention", "device": "cuda"}, "triton"),
    ],
)
def test_another_version_makes_other_ids_of_the_cells_that_use_it_alone(
    monkeypatch: pytest.MonkeyPatch, choices: dict[str, str], package: str
) -> None:
    def ids(**installed: str) -> tuple[str, str]:
        monkeypatch.setattr(planning, "versions", lambda names: {name: installed.get(name) for name in names})
        of = CellIds({"torch": "2.14.0"}).of
        return of(cell(**choices)), of(cell(device="cuda"))

    without, older, newer = ids(), ids(**{package: "1"}), ids(**{package: "2"})
    assert len({without[0], older[0], newer[0]}) == 3
    assert without[1] == older[1] == newer[1]
