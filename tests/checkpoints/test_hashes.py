"""A prepared file that has changed is found before it is measured, and prepared again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.checkpoints import Prepared, cache
from sweeper.cli import verify
from sweeper.config import FolderCheckpoint
from sweeper.errors import CheckpointError
from tests.damage import ANY_FILE, flip

SECRET = b"weights" * 100


def build(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(SECRET)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text("{}")


@pytest.fixture
def built(cache_root: Path) -> Path:
    return cache.build_once("key", build, lambda _: None)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize("file", ["model.safetensors", "1_Pooling/config.json"])
@pytest.mark.parametrize("damage", [damage for name, damage in ANY_FILE.items() if name != "one bit"])
def test_a_damaged_file_is_named_and_prepared_again(built: Path, damage: Callable[[Path], object], file: str) -> None:
    said: list[str] = []
    before = cache.files_digest(built)
    damage(built / file)
    assert cache.build_once("key", build, said.append) == built
    assert (built / "model.safetensors").read_bytes() == SECRET
    (line,) = said
    assert line.startswith(f"{built}/{file}")
    assert line.endswith("it is prepared again")
    assert cache.files_digest(built) == before
    assert sorted(path.name for path in built.parent.iterdir()) == ["key"]


def test_a_file_too_many_and_a_flipped_bit_of_another_time_are_found(built: Path) -> None:
    said: list[str] = []
    (built / "model.safetensors.index.json").write_text("{}")
    cache.build_once("key", build, said.append)
    flip(built / "model.safetensors")
    touch(built / "model.safetensors")
    cache.build_once("key", build, said.append)
    assert [line.partition(" ")[0] for line in said] == [
        f"{built}/model.safetensors.index.json",
        f"{built}/model.safetensors",
    ]


def test_a_copy_is_hashed_once_and_then_known(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbid(*_: object, **__: object) -> None:
        raise AssertionError("must not be called")

    for path in built.rglob("*.*"):
        touch(path)
    cache.build_once("key", forbid, forbid)
    monkeypatch.setattr("sweeper.checkpoints.hashes.sha256_of", forbid)
    cache.build_once("key", forbid, forbid)


def test_a_flipped_bit_that_leaves_no_trace_is_found_on_request(
    built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify.main([]) == 0
    assert "1 checkpoints are what was prepared, 0 are not" in capsys.readouterr().out
    flip(built / "model.safetensors")
    assert cache.damage(built) is None
    assert verify.main([]) == 1
    assert f"{built}/model.safetensors" in capsys.readouterr().out
    assert cache.build_once("key", build, lambda _: None)
    assert (built / "model.safetensors").read_bytes() == SECRET


@pytest.mark.parametrize("damage", [ANY_FILE[name] for name in ("empty", "cut in half", "binary", "a folder")])
def test_hashes_that_cannot_be_read_are_damage_too(built: Path, damage: Callable[[Path], object]) -> None:
    said: list[str] = []
    damage(cache.hashes_path("key"))
    cache.build_once("key", build, said.append)
    assert len(said) == 1
    assert cache.damage(built, again=True) is None


def test_a_checkpoint_of_an_older_version_is_watched_from_now_on(built: Path) -> None:
    said: list[str] = []
    shutil.rmtree(cache.root() / "hashes")
    for _ in range(2):
        cache.build_once("key", build, said.append)
    assert len(said) == 1
    assert "no hashes yet" in said[0]
    ANY_FILE["cut in half"](built / "model.safetensors")
    cache.build_once("key", build, said.append)
    assert "prepared again" in said[1]


def test_what_cannot_be_prepared_is_tried_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[object] = []

    def fail(checkpoint: object, **_: object) -> None:
        tried.append(checkpoint)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sweeper.checkpoints.prepare", fail)
    prepared = Prepared(print)
    checkpoint = FolderCheckpoint(source="folder", name="mine", path=str(tmp_path), head="base", pooling="mean")
    reasons = set()
    for _ in range(3):
        with pytest.raises(CheckpointError, match="No space left") as error:
            prepared.of(checkpoint, "cpu")
        reasons.add(str(error.value))
    assert len(tried) == len(reasons) == 1
