from __future__ import annotations

import threading
from pathlib import Path

import pytest

from sweeper.checkpoints import cache
from sweeper.errors import CheckpointError


def write_weights(folder: Path) -> None:
    (folder / "weights").write_text("1")


def refuse(_: object) -> None:
    raise AssertionError("must not be called")


def test_builds_once_and_then_finds(cache_root: Path) -> None:
    folder = cache.build_once("key", write_weights, refuse)
    assert folder == cache_root / "checkpoints" / "key"
    assert cache.build_once("key", refuse, refuse) == folder
    assert (folder / "weights").read_text() == "1"


def test_a_failed_build_leaves_nothing_and_can_be_tried_again(cache_root: Path) -> None:
    def fail(folder: Path) -> None:
        write_weights(folder)
        raise CheckpointError("no")

    with pytest.raises(CheckpointError, match="no"):
        cache.build_once("key", fail, refuse)
    assert not list((cache_root / "checkpoints").iterdir())
    assert cache.build_once("key", write_weights, refuse).is_dir()


def test_what_a_killed_run_left_is_not_used(cache_root: Path) -> None:
    half_made = cache_root / "checkpoints" / "key.partial"
    half_made.mkdir(parents=True)
    (half_made / "torn").touch()
    folder = cache.build_once("key", write_weights, refuse)
    assert [file.name for file in folder.iterdir()] == ["weights"]
    assert not half_made.exists()


def test_who_comes_second_waits_and_does_not_build(cache_root: Path) -> None:
    building, second_waits = threading.Event(), threading.Event()
    said: list[str] = []

    def build(folder: Path) -> None:
        building.set()
        assert second_waits.wait(timeout=30)
        write_weights(folder)

    def say(line: str) -> None:
        said.append(line)
        second_waits.set()

    first = threading.Thread(target=cache.build_once, args=("key", build, refuse))
    first.start()
    assert building.wait(timeout=30)
    folder = cache.build_once("key", refuse, say)
    first.join()
    assert (folder / "weights").read_text() == "1"
    assert said == ["another process is preparing key; waiting for it"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "file"))
    with pytest.raises(CheckpointError, match=r"cannot make .*file.*set SWEEPER_CACHE"):
        cache.build_once("key", refuse, refuse)
