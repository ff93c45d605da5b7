"""Whose a temporary file is, and when it is removed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from sweeper.records import temporary
from sweeper.records.store import Store


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_dead_process_was_writing_goes_and_what_a_living_one_writes_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    mine = temporary.temporary_prefix()
    theirs = mine.replace(f"-{os.getpid()}-", f"-{ended.pid}-")
    for prefix in (mine, theirs):
        (tmp_path / f"{prefix}sweep.json").touch()
        (tmp_path / f"{prefix}cell").mkdir()
    temporary.remove_abandoned(tmp_path)
    assert names(tmp_path) == {f"{mine}sweep.json", f"{mine}cell"}


def test_on_another_machine_age_alone_tells(tmp_path: Path) -> None:
    """A process of that number may live there, whatever runs here."""
    young, old, foreign = (tmp_path / name for name in (".tmp-01234567-1-a", ".tmp-01234567-1-b", ".tmp-of-somebody"))
    for path in (young, old, foreign):
        path.mkdir()
    long_ago = old.stat().st_mtime - temporary.ABANDONED_S - 1
    os.utime(old, (long_ago, long_ago))
    temporary.remove_abandoned(tmp_path)
    assert names(tmp_path) == {young.name, foreign.name}


def test_opening_a_sweep_removes_them_all(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open({})
    left = [folder / ".tmp-01234567-1-x" for folder in (tmp_path, store.cells_folder)]
    for path in left:
        path.touch()
        os.utime(path, (0, 0))
    store.open({})
    assert names(tmp_path) == {"cells", "sweep.json"}
    assert names(store.cells_folder) == set()
