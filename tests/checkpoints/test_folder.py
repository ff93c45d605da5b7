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


@pytest.mark.parametrize(
    "name", ["model.safetensors", "tokenizer.json", "generation_config.json", "spiece.model", "pool/config.json"]
)
def test_every_file_that_decides_a_result_is_in_the_hash(tmp_path: Path, name: str) -> None:
    (tmp_path / "pool").mkdir()
    names = ("config.json", "model.safetensors", "tokenizer.json", "generation_config.json", "spiece.model")
    for file in (*names, "pool/config.json", "README.md"):
        (tmp_path / file).write_text("{}")
    (tmp_path / "modules.json").write_text('[{"path": ""}, {"path": "pool"}]')

    def hashed() -> str:
        return prepare(checkpoint(tmp_path), device="cpu", say=print).files_sha256

    before = hashed()
    lines = "".join(
        f"{hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()}  {file}\n"
        for file in sorted((*names, "pool/config.json", "modules.json"))
    )
    assert before == hashlib.sha256(lines.encode()).hexdigest()
    (tmp_path / "README.md").write_text("other")
    assert hashed() == before
    (tmp_path / name).write_text("[]")
    assert hashed() != before


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors.index.json", '{"weight_map": {"w": "../elsewhere.safetensors"}}', "only files beside it"),
        ("model.safetensors.index.json", '{"weight_map": {"w": "/etc/passwd"}}', "only files beside it"),
        ("model.safetensors.index.json", '{"weight_map": {"w": "below/a.safetensors"}}', "only files beside it"),
        ("model.safetensors.index.json", '{"weight_map": {"w": "..\\\\a.safetensors"}}', "only files beside it"),
        ("model.safetensors.index.json", '{"weight_map": {"w": "b.safetensors"}}', "b.safetensors, which is not there"),
        ("model.safetensors.index.json", '{"weight_map": ["a.safetensors"]}', "has no weight_map"),
        ("model.safetensors.index.json", '{"weight', "cannot be read"),
        ("modules.json", '[{"path": "../pool"}]', "only folders below it"),
        ("modules.json", '[{"path": "/pool"}]', "only folders below it"),
    ],
)
def test_files_name_nothing_outside_of_their_folder(tmp_path: Path, file: str, content: str, message: str) -> None:
    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    for path in (folder / "a.safetensors", folder / "below" / "a.safetensors", tmp_path / "elsewhere.safetensors"):
        path.write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    (folder / file).write_text(content)
    with pytest.raises(CheckpointError, match=message) as error:
        prepare(checkpoint(folder), device="cpu", say=print)
    assert str(folder / file) in str(error.value)


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
