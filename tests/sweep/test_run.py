"""A whole sweep, as the command line starts it: what is left on disk, what is skipped, what the exit code says."""

from __future__ import annotations

import errno
import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest

from sweeper.cli.main import dispatch
from sweeper.cli.run import carry_out
from sweeper.errors import ConfigError
from sweeper.records.cell import Status
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep
from sweeper.sinks.page import PageSink
from sweeper.sweep.runner import Runner
from tests.composing import request_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def sweep(tmp_path: Path, *arguments: str) -> int:
    tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", "sweep=s", f"output_dir={tmp_path}")
    return carry_out(request_of(*tiny, *arguments))


def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "single" / "s")


def count_runs(monkeypatch: pytest.MonkeyPatch, stop_at: int = 100, stop: BaseException | None = None) -> list[str]:
    ran: list[str] = []
    original = Runner.run

    def run(self: Runner, planned: Any, *more: Any) -> Any:
        if len(ran) == stop_at and stop is not None:
            raise stop
        ran.append(planned.cell_id)
        return original(self, planned, *more)

    monkeypatch.setattr(Runner, "run", run)
    return ran


def test_the_same_command_skips_finished_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = count_runs(monkeypatch)
    assert sweep(tmp_path, "dtype=bfloat16") == 0
    assert sweep(tmp_path, "dtype=bfloat16,float32") == 0
    assert len(ran) == 2
    assert "skipped" in capsys.readouterr().err
    description = json.loads((store(tmp_path).folder / "sweep.json").read_text())
    assert {cell["cell_id"] for cell in description["cells"]} == set(ran)


@pytest.mark.parametrize(
    ("stop", "code"), [(KeyboardInterrupt(), 130), (OSError(errno.ENOSPC, "No space left on device"), 1)]
)
def test_stopping_keeps_what_is_finished_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stop: BaseException, code: int
) -> None:
    thresholds = gc.get_threshold()
    with monkeypatch.context() as patch:
        count_runs(patch, stop_at=1, stop=stop)
        assert sweep(tmp_path, "dtype=bfloat16,float32") == code
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == thresholds
    assert len(store(tmp_path).records()) == 1
    assert "1 of 2 cells" in capsys.readouterr().err
    ran = count_runs(monkeypatch)
    assert sweep(tmp_path, "dtype=bfloat16,float32") == 0
    assert len(ran) == 1
    assert [record.status for record in store(tmp_path).records()] == [Status.OK, Status.OK]


def test_a_failed_cell_makes_the_exit_code_1_and_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    with monkeypatch.context() as patch:
        patch.setattr("sweeper.sweep.reference_runs.compare_kept", fail)
        assert sweep(tmp_path) == 1
    (failed,) = store(tmp_path).records()
    assert (failed.status, failed.reason) == (Status.FAILED, "RuntimeError: boom")
    assert sweep(tmp_path) == 0
    (record,) = store(tmp_path).records()
    assert record.status is Status.OK
    assert record.attempt != failed.attempt


def test_the_reason_of_a_cell_that_fails_over_a_measured_one_is_where_the_line_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("boom")

    def said() -> str:
        assert dispatch(typed) == 0
        return capsys.readouterr().out

    assert sweep(tmp_path, "verdict=false") == 0
    with monkeypatch.context() as patch:
        patch.setattr("sweeper.sweep.reference_runs.compare_kept", fail)
        assert sweep(tmp_path) == 1
    (measured,) = store(tmp_path).records()
    assert measured.status is Status.OK
    typed = ["report", str(store(tmp_path).folder), "--cell", measured.cell_id]
    assert f"see why: python -m sweeper {' '.join(typed)}" in capsys.readouterr().err
    both = said()
    assert both.index("RuntimeError: boom") < both.index("Traceback") < both.index("was measured, and stays")
    assert both.index(measured.attempt) > both.index("was measured, and stays")
    assert sweep(tmp_path) == 0
    capsys.readouterr()
    assert "boom" not in said()


def test_unsupported_cells_are_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(tmp_path, "attention=eager,flash_attention_2") == 0
    assert "unsupported" in capsys.readouterr().out


def test_a_cell_without_a_verdict_runs_again_where_one_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = count_runs(monkeypatch)
    for verdict in ("false", "true", "false", "true"):
        assert sweep(tmp_path, "dtype=bfloat16", f"verdict={verdict}") == 0
    assert len(ran) == 2
    assert [record.verdict is not None for record in store(tmp_path).records()] == [True]


def test_a_folder_keeps_to_one_reference(tmp_path: Path) -> None:
    assert sweep(tmp_path, "dtype=bfloat16", "verdict=false") == 0
    before = (store(tmp_path).folder / "sweep.json").read_bytes()
    with pytest.raises(ConfigError, match="another reference; type another name: sweep=NAME"):
        sweep(tmp_path, "dtype=bfloat16", "verdict=false", "reference={dtype:float64}")
    assert (store(tmp_path).folder / "sweep.json").read_bytes() == before


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"output_dir: cannot write to .*; type output_dir=FOLDER"):
        sweep(tmp_path, f"output_dir={tmp_path / 'file'}")


def test_a_page_that_cannot_be_written_hides_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> str:
        raise RuntimeError("no such template")

    with monkeypatch.context() as patch:
        patch.setattr("sweeper.sinks.page.page", fail)
        assert sweep(tmp_path, "verdict=false") == 1
    shown = capsys.readouterr()
    assert "page: RuntimeError: no such template; it is told no more of this sweep" in shown.err
    assert "starts at" in shown.out
    assert sweep(tmp_path, "verdict=false") == 0
    assert (store(tmp_path).folder / "index.html").is_file()


def test_a_name_keeps_what_several_commands_left_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = count_runs(monkeypatch)
    for dtype in ("bfloat16", "float16", "bfloat16"):
        assert sweep(tmp_path, f"dtype={dtype}", "verdict=false") == 0
    assert len(ran) == 2
    held = Sweep.read(store(tmp_path).folder)
    assert {record.cell_id for record in held.records} == set(ran)
    assert [record.axes["dtype"] for record in held.records] == ["bfloat16", "float16"]
    assert [line.split()[-2] for line in held.command.splitlines()] == ["dtype=float16", "dtype=bfloat16"]
    last_table = capsys.readouterr().out.rpartition("all cells:")[2]
    assert "float16" in last_table
    assert "bfloat16" in last_table


def test_commands_that_run_at_once_in_one_name_leave_no_cell_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = Runner.run
    dtypes: list[str] = []

    def run(self: Runner, planned: Any, *more: Any) -> Any:
        dtypes.append(planned.cell.axes()["dtype"])
        if len(dtypes) == 1:  # another process's command begins, and ends, before this one's first cell has
            assert sweep(tmp_path, "dtype=float16", "verdict=false", "reference={dtype:float64}") == 0
            capsys.readouterr()
        return original(self, planned, *more)

    monkeypatch.setattr(Runner, "run", run)
    assert sweep(tmp_path, "dtype=bfloat16,float32", "verdict=false") == 0
    assert dtypes == ["bfloat16", "float16", "float32"]
    held = Sweep.read(store(tmp_path).folder)
    assert sorted(str(record.axes["dtype"]) for record in held.records) == ["bfloat16", "float16", "float32"]
    table = capsys.readouterr().out.rpartition("all cells:")[2]
    assert all(dtype in table for dtype in ("bfloat16", "float32"))


def test_a_cell_that_runs_again_for_its_recording_keeps_its_figures_and_all_are_told_of_those(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(tmp_path, "dtype=bfloat16", "verdict=false") == 0
    (first,) = store(tmp_path).records()
    told = []
    monkeypatch.setattr(PageSink, "cell_finished", lambda _self, record, modules: told.append((record, modules)))
    half = store(tmp_path).recording(first.cell_id).with_name(".tmp-of-a-machine-that-is-gone-1")
    half.parent.mkdir()
    half.touch()
    os.utime(half, (0, 0))
    assert sweep(tmp_path, "dtype=bfloat16", "verdict=false", "record=true") == 0
    assert store(tmp_path).records() == [first]
    assert told == [(first, store(tmp_path).modules(first.cell_id))]
    assert [path.stem for path in half.parent.iterdir()] == [first.cell_id]


def test_a_sub_selection_finds_its_cells_in_another_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = count_runs(monkeypatch)
    assert sweep(tmp_path, "dtype=bfloat16,float16", "verdict=false", "sweep=whole") == 0
    assert sweep(tmp_path, "dtype=float16", "verdict=false", "sweep=part", "dry_run=true") == 0
    assert "finished in single/whole" in (planned := capsys.readouterr().out)
    assert "0 cells to run, 1 finished" in planned
    assert not (tmp_path / "single" / "part").exists()
    assert sweep(tmp_path, "dtype=float16", "verdict=false", "sweep=part") == 0
    assert len(ran) == 2
    (adopted,) = Store(tmp_path / "single" / "part").records()
    assert adopted == Store(tmp_path / "single" / "whole").read(adopted.cell_id)
    assert Store(tmp_path / "single" / "part").modules(adopted.cell_id)
    other = "reference={dtype:float64}"
    assert sweep(tmp_path, "dtype=float16", "verdict=false", "sweep=other", other) == 0
    assert len(ran) == 3, "the same cell against another reference was taken for this one"
    assert sweep(tmp_path, "dtype=float16", "sweep=judged") == 0
    assert len(ran) == 4, "a cell without a verdict was taken where one is asked for"
