"""Packed texts of an encoder under flash attention, which is told where each begins: the embedding engineer's case."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import ModernBertConfig, ModernBertModel

from sweeper.checkpoints.folder import no_progress_bars
from sweeper.comparator import forwards
from tests.checkpoints.grids import run_with

needs_flash = pytest.mark.skipif(
    not torch.cuda.is_available() or find_spec("flash_attn") is None, reason="needs a GPU and flash-attn"
)
IDS = "[[7,8,9,10,11,12,13,14,15],[20,21,22,23,24],[30,31,32,33,34,35,36],[40,41,42]]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tmp_path / "modernbert")


def saved(folder: Path) -> Path:
    """Two layers, the second one sliding; heads of 64, which builds of flash-attn for few sizes take as well."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=300,
        hidden_size=128,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=2,
        global_attn_every_n_layers=2,
        local_attention=32,
        pad_token_id=0,
        cls_token_id=1,
        sep_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.2,
        initializer_cutoff_factor=2.0,
    )
    with no_progress_bars():
        ModernBertModel(config).save_pretrained(folder)
    return folder


def records(folder: Path, scratch: Path, *more: str) -> list[dict[str, Any]]:
    inputs = ["inputs=token_ids", "inputs.name=four_texts", f"inputs.token_ids={IDS}"]
    return run_with(folder, scratch, "padding_vs_packing", inputs, *more)


@needs_flash
def test_packed_texts_are_kept_apart_by_flash_attention(folder: Path, tmp_path: Path) -> None:
    flash = ["device=cuda", "attention=flash_attention_2", "dtype=bfloat16,float16", "layout=padded,packed,single"]
    cells = records(folder, tmp_path, *flash, "verdict=true")
    assert {cell["status"] for cell in cells} == {"ok"}, [cell["reason"] for cell in cells]
    assert all(any("flash" in kernel for kernel in cell["attention_kernels"]) for cell in cells)
    packed = [cell for cell in cells if cell["axes"]["layout"] == "packed"]
    assert len(packed) == 2
    for cell in packed:
        assert cell["verdict"]["kind"] in ("identical", "rounding"), cell["verdict"]
        assert cell["output"]["rel_l2"] < 0.01
        assert cell["neighbours_changed"] in (0, None)


LONG = f"inputs.token_ids=[[{','.join(map(str, range(3, 43)))}],[5,6,7],[60,61,62,63,64]]"
"""The first text is longer than the 16 tokens to either side that the sliding layer sees."""


@needs_flash
def test_flash_attention_keeps_to_the_window_inside_a_packed_text(folder: Path, tmp_path: Path) -> None:
    typed = ["device=cuda", "attention=flash_attention_2", "dtype=bfloat16", "layout=packed,single", LONG]
    check_same_function(records(folder, tmp_path, *typed, "verdict=true"))


def check_same_function(cells: list[dict[str, Any]]) -> None:
    assert {cell["status"] for cell in cells} == {"ok"}, [cell["reason"] for cell in cells]
    assert {cell["verdict"]["kind"] for cell in cells} <= {"identical", "rounding"}
    assert {cell["axes"]["layout"] for cell in cells} == {"packed", "single"}


@pytest.mark.parametrize("texts", [[], [LONG]], ids=["short", "longer than the window"])
def test_packed_texts_are_kept_apart_by_masks(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    typed = ["attention=eager,sdpa", "dtype=float32", "layout=packed,single", *texts]
    cells = records(folder, tmp_path, *typed, "verdict=true")
    check_same_function(cells)
    assert all(cell["output"]["rel_l2"] < 1e-5 for cell in cells)
    assert all(cell["neighbours_changed"] in (0, None) for cell in cells)


def test_a_mask_without_the_window_would_be_seen(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forwards.layout, "within", lambda forward, _: forwards.layout.same_text(forward))
    (packed,) = records(folder, tmp_path, "attention=sdpa", "dtype=float32", "layout=packed", LONG)
    assert packed["output"]["rel_l2"] > 1e-3


def test_a_model_without_masks_by_layer_refuses_a_text_beyond_its_window(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwards, "takes_masks_by_layer", lambda _: False)
    cells = records(folder, tmp_path, "attention=sdpa", "dtype=float32", "layout=packed", LONG)
    assert {cell["status"] for cell in cells} == {"unsupported"}
    assert "a packed text of 40 tokens is longer than the 16 that a layer of ModernBertModel sees" in cells[0]["reason"]
