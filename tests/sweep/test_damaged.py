"""A sweep whose files were damaged: the same command runs those cells again, and names the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.records.cell import Status
from sweeper.records.store import Store
from tests.damage import ANY_FILE, JSON_FILE, WHOLE_FOLDER
from tests.sweep.test_run import count_runs, store, sweep  # noqa: F401: the fixture of the cache

TWO = ("dtype=bfloat16,float16", "verdict=false")


@pytest.mark.parametrize(
    ("file", "name"),
    [("cell.json", "newer"), ("modules.parquet", "cut in half"), ("cell.json", "one bit"), ("", "emptied")],
)
def test_a_damaged_cell_runs_again_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str, name: str
) -> None:
    ran = count_runs(monkeypatch)
    assert sweep(tmp_path, *TWO) == 0
    folder = store(tmp_path).cells_folder / ran[0]
    (ANY_FILE | JSON_FILE | WHOLE_FOLDER)[name](folder / file if file else folder)
    capsys.readouterr()
    for last in ("dry_run=true", "wandb.mode=disabled"):
        assert sweep(tmp_path, *TWO, last) == 0
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "its cell runs again" in line)
        assert line.startswith(str(folder))
    assert ran[2:] == [ran[0]]
    assert [record.status for record in store(tmp_path).records()] == [Status.OK] * 2
    assert not [path for path in store(tmp_path).cells_folder.iterdir() if path.name.startswith(".")]


def test_a_damaged_cell_of_another_sweep_is_not_adopted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = count_runs(monkeypatch)
    assert sweep(tmp_path, "verdict=false", "sweep=whole") == 0
    ANY_FILE["cut in half"](tmp_path / "single" / "whole" / "cells" / ran[0] / "modules.parquet")
    assert sweep(tmp_path, "verdict=false", "sweep=part") == 0
    assert len(ran) == 2
    assert len(Store(tmp_path / "single" / "part").records()) == 1


def test_a_damaged_list_is_written_anew_and_keeps_the_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = count_runs(monkeypatch)
    assert sweep(tmp_path, "dtype=bfloat16", "verdict=false") == 0
    for name in ("empty", "missing", "binary", "a link to nowhere"):
        ANY_FILE[name](store(tmp_path).folder / "sweep.json")
        assert sweep(tmp_path, "dtype=float16", "verdict=false") == 0
        shown = capsys.readouterr()
        assert "sweep.json: " in shown.err
        assert "bfloat16" in shown.out.rpartition("all cells:")[2]
    assert len(ran) == 2
