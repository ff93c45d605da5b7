"""Several processes that were given the same command: each cell runs once, whoever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from sweeper.environment import environment
from sweeper.launchers.launcher import ENDED
from sweeper.planning.plan import PlannedCell, make_plan
from sweeper.records.cell import CellRecord, Status
from sweeper.records.store import Store
from sweeper.sweep.shared_work import SharedWork
from tests.composing import request_of
from tests.sinks.records import modules, record

GRID = (
    "checkpoint=tiny_llama",
    "dtype=float32,bfloat16,float16",
    "attention=eager,sdpa",
    "reference={attention:eager}",
)
SWEEP = """
import os, sys, time
from pathlib import Path
import sweeper.sweep.run as run
from tests.composing import request_of
from tests.sinks.records import modules, record

class Slow:
    usable = True

    def run(self, planned, following=()):
        with open("ran", "a") as file:
            print(os.getpid(), planned.cell_id, file=file, flush=True)
        time.sleep(0.3)
        return record(planned.cell_id, reference_id=planned.reference_id), tuple(modules())

run._make_runner = lambda sink, **_: Slow()
sys.exit(run.run(request_of(*sys.argv[1:])))
"""


def planned_cells() -> tuple[PlannedCell, ...]:
    return make_plan(request_of(*GRID), environment("cpu")).cells


def shared(cells: tuple[PlannedCell, ...], store: Store, found: list[CellRecord]) -> SharedWork:
    return SharedWork(cells, store, judged=False, found=found.append)


def opened(folder: Path) -> Store:
    store = Store(folder)
    store.open({})
    return store


def test_what_another_process_runs_is_not_taken_and_its_results_are_found(tmp_path: Path) -> None:
    cells, store = planned_cells(), opened(tmp_path)
    theirs: list[CellRecord] = []
    mine, other = shared(cells, store, []), shared(cells, store, theirs)
    first = mine.take()
    second = other.take()
    assert first is not None
    assert second is not None
    assert [unit.cells for unit in (first, second)] == [cells[:2], cells[2:4]]
    for planned in first.cells:
        mine.cell_started(planned)
        made = record(planned.cell_id, reference_id=planned.reference_id)
        store.write(made, modules())
        mine.cell_finished(made, ())
    third = other.take()
    assert third is not None
    assert third.cells == cells[4:]
    assert [found.cell_id for found in theirs] == [planned.cell_id for planned in cells[:2]]
    assert mine.take() is None
    assert mine.left
    assert not other.left


def test_who_finds_all_of_it_claimed_waits_says_so_and_takes_over_from_the_dead(tmp_path: Path) -> None:
    cells, store = planned_cells(), opened(tmp_path)
    mine, other = shared(cells, store, []), shared(cells, store, [])
    units = list(iter(other.take, None))
    assert len(units) == 3
    assert mine.take() is None
    said: list[str] = []

    def die(line: str) -> None:
        said.append(line)
        other.close(finished=False)

    mine.wait(die)
    assert said == ["other processes run the 6 cells that are left; waiting for them"]
    unit = mine.take()
    assert unit is not None
    assert unit.cells == units[0].cells


def test_a_cell_that_failed_since_is_a_result_and_one_that_failed_before_is_not(tmp_path: Path) -> None:
    cells, store = planned_cells(), opened(tmp_path)
    store.write(record(cells[0].cell_id, status=Status.FAILED, attempt="before"), ())
    found: list[CellRecord] = []
    mine = shared(cells, store, found)
    store.write(record(cells[1].cell_id, status=Status.FAILED, attempt="just now"), ())
    unit = mine.take()
    assert unit is not None
    assert unit.cells == cells[:1]
    assert [one.cell_id for one in found] == [cells[1].cell_id]


def test_a_cell_that_ended_its_process_is_risky(tmp_path: Path) -> None:
    cells, store = planned_cells(), opened(tmp_path)
    store.write(record(cells[0].cell_id, status=Status.FAILED, reason=f"{ENDED} (signal 11)"), ())
    unit = shared(cells, store, []).take()
    assert unit is not None
    assert unit.risky == {cells[0].cell_id}
    assert unit.careful


def test_units_that_read_the_same_weights_come_first_and_those_of_other_workers_last(tmp_path: Path) -> None:
    arguments = ("checkpoint=tiny_llama", "dtype=bfloat16,float16", "reference={dtype:float32}", "layout=padded,packed")
    cells = make_plan(request_of(*arguments, "inputs=report_2", "use_cache=true,false"), environment("cpu")).cells
    work = shared(cells, opened(tmp_path), [])
    assert len({planned.reference_id for planned in cells}) > 2
    first = work.take()
    assert first is not None
    again = work.take(like=first, beside=[first])
    assert again is not None
    assert {cell.cell.dtype for cell in again.cells} == {cell.cell.dtype for cell in first.cells}


def test_processes_in_one_folder_run_each_cell_once_also_where_one_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SWEEP, *GRID, "verdict=false", "sweep=s", f"output_dir={tmp_path}"]
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    processes = [subprocess.Popen(command, cwd=tmp_path, env=settings) for _ in range(3)]
    ran = tmp_path / "ran"
    while not (ran.exists() and ran.stat().st_size) and all(process.poll() is None for process in processes):
        time.sleep(0.01)
    killed = int(ran.read_text().split()[0])
    os.kill(killed, signal.SIGKILL)
    codes = {process.pid: process.wait(timeout=120) for process in processes}
    assert codes == {process.pid: -9 if process.pid == killed else 0 for process in processes}
    cells = Store(tmp_path / "single" / "s").records()
    assert len(cells) == 6
    times = Counter(line.split()[1] for line in ran.read_text().splitlines())
    assert set(times) == {cell.cell_id for cell in cells}
    assert sum(times.values()) <= 7, "only what the killed one was at may have run twice"
    assert not list((tmp_path / "single" / "s").glob("claims"))
