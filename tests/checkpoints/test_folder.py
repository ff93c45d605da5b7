from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from transformers.utils import logging as transformers_logging

from sweeper.checkpoints import prepare
from sweeper.checkpoints.folder import no_progress_bars
from sweeper.config import FolderCheckpoint
from sweeper.errors import CheckpointError


def checkpoint(path: Path) -> FolderCheckpoint:
    return FolderCheckpoint(source="folder", name="mine", path=str(path), head="causal_lm", pooling="last_token")


def test_one_file_has_the_revision_that_sha256sum_prints(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    local = prepare(checkpoint(tmp_path), device="cpu", say=print)
    assert local.folder == tmp_path
    assert local.revision == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert not local.has_tokenizer


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer.model", "vocab.txt"])
def test_finds_the_tokenizer(tmp_path: Path, name: str) -> None:
    for file in ("config.json", "a.safetensors", "b.safetensors", name):
        (tmp_path / file).touch()
    assert prepare(checkpoint(tmp_path), device="cpu", say=print).has_tokenizer


def test_pickled_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"no \*\.safetensors; .*holds: config\.json, pytorch_model\.bin"):
        prepare(checkpoint(tmp_path), device="cpu", say=print)


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no folder"):
        prepare(checkpoint(tmp_path / "nowhere"), device="cpu", say=print)


def test_progress_bars_come_back_after_an_exception() -> None:
    def fail() -> None:
        with no_progress_bars():
            assert not transformers_logging.is_progress_bar_enabled()
            raise ValueError("boom")

    assert transformers_logging.is_progress_bar_enabled()
    with pytest.raises(ValueError, match="boom"):
        fail()
    assert transformers_logging.is_progress_bar_enabled()
