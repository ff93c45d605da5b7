"""Axes without meaning are dropped, once, and what cannot run is told before weights are read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sweeper.config import Cell, FolderCheckpoint, Layout, Positions
from sweeper.errors import ConfigError
from sweeper.planning.settle import Settler
from tests.composing import request_of, write_grid
from tests.tiny_folders import cell_of, folder_of


def settled(name: str, **choices: Any) -> tuple[Cell, list[str]]:
    settler = Settler(print)
    cell = settler.cell(cell_of(folder_of(name), **choices))
    return cell, list(settler.dropped)


def test_a_decoder_keeps_every_axis() -> None:
    cell, dropped = settled("llama", use_cache=True, positions="explicit")
    assert (cell.use_cache, cell.positions, dropped) == (True, Positions.EXPLICIT, [])


@pytest.mark.parametrize(
    ("name", "axis", "value", "words"),
    [
        ("bert", "use_cache", False, "BertForMaskedLM has no key-value cache"),
        ("bart", "positions", Positions.IMPLICIT, "BartForConditionalGeneration takes no position_ids"),
        ("vit", "layout", Layout.PADDED_RIGHT, "ViTForImageClassification reads pixel_values"),
    ],
)
def test_an_axis_without_meaning_has_one_value_and_is_said(name: str, axis: str, value: Any, words: str) -> None:
    cell, dropped = settled(name, use_cache=True, positions="explicit", layout="packed")
    assert getattr(cell, axis) == value
    assert [sentence for sentence in dropped if sentence.startswith(f"{axis} has no meaning for {name}: {words}")]


def test_cells_that_differ_in_it_alone_are_one() -> None:
    settler = Settler(print)
    cells = [cell_of(folder_of("bert"), use_cache=cached) for cached in (False, True)]
    assert len(settler.cells(cells)) == 1
    assert len(settler.dropped) == 1


@pytest.mark.parametrize(("name", "side"), [("llama", Layout.PADDED_LEFT), ("bert", Layout.PADDED_RIGHT)])
def test_padded_is_on_the_side_of_the_model(name: str, side: Layout) -> None:
    assert settled(name, layout="padded")[0].layout is side
    assert settled(name, layout="padded_left")[0].layout is Layout.PADDED_LEFT


@pytest.mark.parametrize(
    ("name", "choices", "reason"),
    [
        ("bert", {"layout": "packed"}, None),
        ("bert", {"layout": "packed", "attention": "flex_attention"}, "are not kept apart under flex_attention"),
        ("deberta-v2", {"layout": "packed"}, "DebertaV2ForMaskedLM takes no mask that keeps packed texts apart"),
        ("mamba", {"layout": "packed"}, "MambaForCausalLM takes no position_ids: nothing tells it where"),
        ("vit", {}, "ViTForImageClassification reads pixel_values, not texts; type inputs=media"),
        ("bert", {"inputs": {"name": "x", "arrays": "x.npy"}}, "BertForMaskedLM reads input_ids, not arrays"),
    ],
)
def test_what_the_class_cannot_run_is_known_without_weights(
    name: str, choices: dict[str, Any], reason: str | None
) -> None:
    settler = Settler(print)
    found = settler.unsupported(settler.cell(cell_of(folder_of(name), **choices)))
    assert found is None if reason is None else reason in str(found)


@pytest.mark.parametrize("how", ["{}", "'{}'", "{},tiny_bert"])
def test_a_folder_is_a_checkpoint_as_it_stands(how: str) -> None:
    request = request_of(f"checkpoint={how.format(folder_of('llama'))}", "inputs=report_1")
    assert [cell.checkpoint.name for cell in request.cells] == ["llama", "tiny_bert"][: 1 + ("," in how)]
    assert request.cells[0].checkpoint.path == str(folder_of("llama"))  # type: ignore[union-attr]


def test_a_gguf_file_is_a_checkpoint_as_it_stands() -> None:
    for place in ("tiny.gguf", "./models/tiny.gguf"):
        (cell,) = request_of(f"checkpoint={place}", "inputs=report_1").cells
        assert cell.checkpoint == FolderCheckpoint(source="folder", name="tiny", path=place)


def test_a_model_of_the_hub_is_a_checkpoint_as_it_stands() -> None:
    checkpoint = request_of("checkpoint=lab/some-model", "checkpoint.revision=v2", "reference={checkpoint:a/b}")
    found: Any = checkpoint.cells[0].checkpoint
    assert (found.source, found.repo_id, found.revision) == ("hub", "lab/some-model", "v2")
    assert checkpoint.reference["checkpoint"].repo_id == "a/b"


def test_a_grid_without_its_first_line_is_told_so(tmp_path: Path) -> None:
    folder = write_grid(tmp_path, "mine", "hydra: {sweeper: {params: {dtype: 'float32,bfloat16'}}}\n")
    assert len(request_of("+grid=mine", user_conf=folder).cells) == 2
    grid = folder / "grid" / "mine.yaml"
    grid.write_text(grid.read_text().partition("\n")[2])
    with pytest.raises(ConfigError, match="the first line of the grid's file must be: # @package _global_"):
        request_of("+grid=mine", user_conf=folder)


def test_a_plan_of_a_checkpoint_that_states_everything_imports_no_transformers(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom sweeper.cli.main import dispatch\n"
        "assert dispatch(['checkpoint=tiny_llama', 'device=cpu', 'dry_run=true']) == 0\n"
        "assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
