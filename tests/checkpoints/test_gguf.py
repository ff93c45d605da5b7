"""GGUF files: the default checkpoint's, from the registry to a folder that loads; and one's own, by path."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweeper.checkpoints import gguf, prepare, settled, wheel
from sweeper.config import FolderCheckpoint
from sweeper.errors import CheckpointError
from sweeper.models.packages import packages
from sweeper.planning.plan import CellIds
from tests.checkpoints.conftest import shipped
from tests.checkpoints.grids import records_of, spied, unlike_plain
from tests.tiny_folders import cell_of
from tests.tiny_gguf import write_gguf


@pytest.mark.slow
def test_the_folder_holds_the_bits_that_were_dequantised(cache_root: Path) -> None:
    checkpoint = shipped("smollm2_135m_instruct")
    gguf_file = wheel.verified_source(checkpoint, print)
    dequantised = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).state_dict()
    said: list[str] = []
    local = prepare(checkpoint, device="cpu", say=said.append)
    loaded = AutoModelForCausalLM.from_pretrained(local.folder, dtype="auto")

    assert [line.split()[0] for line in said] == ["dequantising"]  # not fetched twice
    assert loaded.dtype is torch.float32
    assert not hasattr(loaded.config, "quantization_config")
    assert loaded.state_dict().keys() == dequantised.keys()
    assert all(torch.equal(weight, dequantised[name]) for name, weight in loaded.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(local.folder)
    assert tokenizer("Gravity is").input_ids == [22007, 6463, 314]
    assert not gguf_file.exists()


def mine(path: Path) -> FolderCheckpoint:
    return FolderCheckpoint(source="folder", name="mine", path=str(path))


@pytest.mark.parametrize("grid", ["bf16_vs_fp32", "padding_vs_packing"])
def test_the_grids_run_on_a_gguf_file_of_ones_own(cache_root: Path, tmp_path: Path, grid: str) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    with spied():
        records = records_of(file, tmp_path, grid, "dtype=float32,bfloat16")
        assert not unlike_plain(records, prepare(mine(file), device="cpu", say=print).folder)
    assert {record["status"] for record in records} == {"ok", "unsupported"}
    revision = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    assert {record["checkpoint_revision"] for record in records if record["status"] == "ok"} == {revision}
    assert {record["axes"]["checkpoint"] for record in records} == {"tiny"}


def test_a_folder_with_one_gguf_file_is_that_file(cache_root: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    by_folder, by_file = (prepare(mine(path), device="cpu", say=print) for path in (tmp_path, file))
    assert by_folder == by_file
    assert by_folder.has_tokenizer
    write_gguf(tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match=r"holds several GGUF files; type checkpoint=.*: other\.gguf, tiny\.gguf"):
        prepare(mine(tmp_path), device="cpu", say=print)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architecture": "of_tomorrow"}, r"cannot be read as GGUF: ValueError .*of_tomorrow is not supported"),
        ({"left_out": "blk.0.attn_q.weight"}, r"lacks model\.layers\.0\.self_attn\.q_proj\.weight of LlamaForCausalLM"),
    ],
)
def test_what_is_not_read_is_said_in_one_line(
    cache_root: Path, tmp_path: Path, changes: dict[str, str], words: str
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", **changes)
    with pytest.raises(CheckpointError, match=words) as raised:
        settled(mine(file), print)
    assert "\n" not in str(raised.value)
    assert not list((cache_root / "checkpoints").iterdir())


def test_bytes_that_are_no_gguf_are_refused(cache_root: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF, as if")
    with pytest.raises(CheckpointError, match=r"model\.gguf cannot be read as GGUF"):
        settled(mine(tmp_path / "model.gguf"), print)


def test_one_part_of_several_is_refused(cache_root: Path, tmp_path: Path) -> None:
    part = write_gguf(tmp_path / "model-00001-of-00003.gguf")
    with pytest.raises(CheckpointError, match="is one part of several; join them: llama-gguf-split --merge"):
        settled(mine(part), print)


def test_without_the_package_it_is_named(cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "version", lambda _: None)
    with pytest.raises(CheckpointError, match="needs the package gguf, which is not installed: pip install gguf"):
        settled(mine(write_gguf(tmp_path / "tiny.gguf")), print)


def test_its_package_and_its_bytes_are_in_the_id(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf")
    cell = cell_of(file)
    assert packages(cell) == ("gguf",)
    before = CellIds({}).of(cell)
    file.touch()
    assert CellIds({}).of(cell) != before
