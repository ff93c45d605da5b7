"""Cells that end the process which runs them, or do not end: each costs itself, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from sweeper.cli.run import carry_out
from sweeper.errors import ConfigError
from sweeper.launchers import gpus, processes
from sweeper.launchers.gpus import places
from sweeper.launchers.inline import InlineLauncher
from sweeper.launchers.launcher import Finished, Launcher, Lost, Unit, units_of
from sweeper.launchers.processes import ProcessLauncher
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import Store
from sweeper.sinks.sink import Sink
from tests.composing import request_of
from tests.launchers.test_launchers import Listed, Listening, planned_cells
from tests.sinks.records import modules, record


class Mortal:
    """Measures nothing, and does to its process what its cell's place in `acts` says.

    Args:
        folder: keeps, for `killed once`, whether it was.
        acts: cell id -> what to do.
    """

    def __init__(self, sink: Sink, *, folder: Path, acts: dict[str, str]) -> None:
        self.usable = True
        self._folder = folder
        self._acts = acts

    def run(
        self, planned: PlannedCell, following: Sequence[PlannedCell] = ()
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        with (self._folder / "ran").open("a") as file:
            file.write(f"{os.getpid()} {planned.cell_id}\n")
        acts = [self._acts.get(cell.cell_id) for cell in (planned, *following)]
        if "segfault in company" in acts:  # a run that these cells share
            ctypes.string_at(0)
        match acts[0]:
            case "segfault":
                ctypes.string_at(0)
            case "abort":
                os.abort()
            case "hang":
                time.sleep(600)
            case "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "killed once" if not (self._folder / "killed").exists():
                (self._folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            case "poison":
                self.usable = False
        return record(planned.cell_id, reference_id=planned.reference_id), tuple(modules())


def launched(
    launcher: Launcher, units: Sequence[Unit], folder: Path, **acts: str
) -> tuple[dict[str, str], list[list[str]], Listening]:
    """Cell id -> how it ended; process and cell of every attempt; and what the sinks heard."""
    sink = Listening()
    make_worker = partial(Mortal, folder=folder, acts=acts)
    results = list(launcher.launch(Listed(units), make_worker, sink))
    ended = {
        result.planned.cell_id if isinstance(result, Lost) else result.record.cell_id: result.reason
        if isinstance(result, Lost)
        else "ok"
        for result in results
    }
    assert len(ended) == len(results), "a cell came twice"
    ran = [line.split() for line in (folder / "ran").read_text().splitlines()]
    return ended, ran, sink


def ids(cells: Sequence[PlannedCell]) -> list[str]:
    return [planned.cell_id for planned in cells]


def test_a_crash_a_kill_and_a_hang_cost_a_cell_each_and_a_new_worker_goes_on(tmp_path: Path) -> None:
    cells = planned_cells("dtype=float32,bfloat16,float16", "attention=eager,sdpa", "reference={dtype:float32}")
    one, segfault, killed_once, hang, last = ids(cells)[:5]
    acts = {segfault: "segfault", killed_once: "killed once", hang: "hang"}
    ended, ran, sink = launched(ProcessLauncher([{}], cell_timeout_s=3), units_of(cells[:5]), tmp_path, **acts)
    assert ended == {
        one: "ok",
        segfault: "the process that ran it ended: signal 11 (SIGSEGV)",
        killed_once: "ok",
        hang: "took longer than cell_timeout_s=3",
        last: "ok",
    }
    assert [cell_id for _, cell_id in ran] == sink.started == [one, segfault, killed_once, killed_once, hang, last]
    processes = [process for process, _ in ran]
    assert len(set(processes)) == 4
    assert processes[0] == processes[1], "a worker lives on from cell to cell"


def test_a_crash_of_a_run_that_cells_share_costs_the_one_that_did_it(tmp_path: Path) -> None:
    cells = planned_cells("dtype=float32,bfloat16,float16")
    first, second, third = ids(cells)
    ended, ran, _ = launched(ProcessLauncher([{}]), units_of(cells), tmp_path, **{third: "segfault in company"})
    assert ended == {first: "ok", second: "ok", third: "the process that ran it ended: signal 11 (SIGSEGV)"}
    assert [cell_id for _, cell_id in ran] == [first, first, second, third]


def test_a_cell_that_is_killed_twice_says_so(tmp_path: Path) -> None:
    cells = planned_cells("dtype=float32,bfloat16")
    acts = {cells[0].cell_id: "killed"}
    ended, ran, _ = launched(ProcessLauncher([{}]), units_of(cells), tmp_path, **acts)
    assert ended[cells[0].cell_id] == (
        "the process that ran it ended twice: signal 9 (SIGKILL), as where memory runs out"
    )
    assert ended[cells[1].cell_id] == "ok"
    assert len(ran) == 3


def no_worker(sink: Sink) -> Mortal:
    raise PermissionError(13, "Permission denied", "weights")


def test_why_no_worker_could_be_made_is_the_reason_of_its_cells() -> None:
    (planned,) = planned_cells("dtype=float32")
    (lost,) = ProcessLauncher([{}]).launch(Listed(units_of([planned])), no_worker, Listening())
    assert isinstance(lost, Lost)
    assert lost.reason == (
        "the process that ran it ended twice: exit code 1: "
        "no worker could be made: PermissionError: [Errno 13] Permission denied: 'weights'"
    )


def test_in_this_process_a_risky_cell_and_all_after_a_lost_device_run_in_another(tmp_path: Path) -> None:
    cells = planned_cells("dtype=float32,bfloat16", "attention=eager,sdpa")
    first, risky, poison, after = ids(cells)
    (unit,) = units_of(cells)
    unit = Unit(reference_id=unit.reference_id, cells=unit.cells, risky=frozenset({risky}))
    ended, ran, _ = launched(InlineLauncher(), [unit], tmp_path, **{risky: "abort", poison: "poison"})
    assert ended == {
        first: "ok",
        risky: "the process that ran it ended: signal 6 (SIGABRT)",
        poison: "ok",
        after: "ok",
    }
    here = str(os.getpid())
    assert [process == here for process, _ in ran] == [True, False, True, False]


def test_a_worker_has_its_next_unit_before_the_last_result_is_stored(tmp_path: Path) -> None:
    cells = planned_cells("dtype=float32,bfloat16")
    units = [Unit(reference_id=planned.reference_id, cells=(planned,)) for planned in cells]
    with contextlib.closing(
        ProcessLauncher([{}]).launch(Listed(units), partial(Mortal, folder=tmp_path, acts={}), Listening())
    ) as running:
        next(running)  # and whoever asked for it is storing it
        deadline = time.monotonic() + 60
        while len((tmp_path / "ran").read_text().splitlines()) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [line.split()[1] for line in (tmp_path / "ran").read_text().splitlines()] == ids(cells)


def test_closing_it_early_ends_its_workers(tmp_path: Path) -> None:
    cells = planned_cells("dtype=float32,bfloat16")
    make_worker = partial(Mortal, folder=tmp_path, acts={cells[1].cell_id: "hang"})
    launcher = ProcessLauncher([{}])
    running = launcher.launch(Listed(units_of(cells)), make_worker, Listening())
    assert isinstance(next(running), Finished)
    process = int((tmp_path / "ran").read_text().split()[0])
    running.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_a_worker_sees_its_own_gpus() -> None:
    def seen(workers: int | None, share: int, visible: str) -> list[str]:
        return [place.get("CUDA_VISIBLE_DEVICES", "") for place in places(workers, share, visible.split())]

    assert seen(None, 1, "4 5 7") == ["4", "5", "7"]
    assert seen(2, 1, "4 5 7") == ["4", "5"]
    assert seen(None, 2, "4 5 6 7 8") == ["4,5", "6,7"]
    assert seen(None, 1, "") == [""]
    assert seen(3, 1, "") == ["", "", ""]
    with pytest.raises(ConfigError, match=r"launcher.workers=3 of 1 GPUs each: there are 2 .* ask for 2 or fewer"):
        seen(3, 1, "0 1")
    with pytest.raises(
        ConfigError, match=r"workers=1 of 2 GPUs each: there are 1 .* ask for launcher.gpus_a_worker=1 or fewer"
    ):
        seen(None, 2, "0")


def test_a_sweep_runs_on_gpus_of_one_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan's ids hold the first GPU's name; records of another would be kept under it."""
    request = request_of("checkpoint=tiny_llama", "launcher=gpus")
    monkeypatch.setattr(processes, "plan_here", lambda _: SimpleNamespace(environment={"device": "cuda"}))
    launcher = gpus.GpusLauncher([])
    monkeypatch.setattr(gpus, "gpu_names", lambda: {"4": "A", "5": "B", "7": "A"})
    said = r"2 kinds \(4,7 A, 5 B\), a sweep is of one: set CUDA_VISIBLE_DEVICES=4,7 or CUDA_VISIBLE_DEVICES=5"
    with pytest.raises(ConfigError, match=said):
        launcher.plan(request)
    monkeypatch.setattr(gpus, "gpu_names", lambda: {"4": "A", "7": "A"})
    assert launcher.plan(request).environment == {"device": "cuda"}


def test_a_model_larger_than_a_gpu_gets_several(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(workers: int | None, share: int, seen: list[str]) -> list[dict[str, str]]:
        asked.append(share)
        return []

    monkeypatch.setattr(gpus, "visible_gpus", lambda: ["0", "1", "2", "3"])
    monkeypatch.setattr(gpus, "places", noted)
    for words in ([], ["weights=spread"], ["weights=spread", "launcher.gpus_a_worker=2"]):
        gpus.make_gpus_launcher(request_of("checkpoint=tiny_llama", "launcher=gpus", *words).settings)
    assert asked == [1, 4, 2]
    with pytest.raises(ConfigError, match=r"has to know over how many GPUs .* add launcher.gpus_a_worker=N"):
        request_of("checkpoint=tiny_llama", "launcher=ray", "weights=spread")


def test_workers_give_the_records_of_one_process_bit_for_bit(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))

    def swept(name: str, *arguments: str) -> list[CellRecord]:
        tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", "sweep=s", "verdict=false")
        grid = ("dtype=float32,bfloat16", "attention=eager,sdpa", "reference={attention:eager}")
        assert carry_out(request_of(*tiny, *grid, f"output_dir={tmp_path / name}", *arguments)) == 0
        return Store(tmp_path / name / "single" / "s").records()

    own = {"attempt", "started_at", "cost"}
    inline = [one.model_dump(exclude=own) for one in swept("inline")]
    assert [one.model_dump(exclude=own) for one in swept("two", "launcher=gpus", "launcher.workers=2")] == inline
    assert len(inline) == 4
    assert {one["status"] for one in inline} == {Status.OK}
