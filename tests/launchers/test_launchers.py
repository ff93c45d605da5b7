"""The seam between a plan and who runs it: units of work in, records out, in this process and in another."""

from __future__ import annotations

import pickle
from collections.abc import Generator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from sweeper.cli.run import config_folder
from sweeper.environment import environment
from sweeper.launchers import gpus
from sweeper.launchers.inline import InlineLauncher
from sweeper.launchers.launcher import Finished, MakeWorker, Unit, Work, plan_here, units_of
from sweeper.launchers.registry import LAUNCHERS, make_launcher
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan, PlannedCell, make_plan
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import Store
from sweeper.sinks.sink import Sink
from sweeper.sweep.run import run
from tests.composing import request_of
from tests.sinks.records import modules, record

TINY = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", "verdict=false", "sweep=s")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def planned_cells(*arguments: str) -> tuple[PlannedCell, ...]:
    return make_plan(request_of("checkpoint=tiny_llama", *arguments), environment("cpu")).cells


class Listening(Sink):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self.finished: list[str] = []
        self.skipped: list[str] = []
        self.ended: list[str] = []

    def cell_started(self, planned: PlannedCell) -> None:
        self.started.append(planned.cell_id)

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self.finished.append(record.cell_id)

    def cell_skipped(self, record: CellRecord) -> None:
        self.skipped.append(record.cell_id)

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        self.ended = [record.cell_id for record in records]


class Listed:
    """Units that no other process shares."""

    def __init__(self, units: Sequence[Unit]) -> None:
        self._units = list(units)

    def take(self, like: Unit | None = None, beside: Sequence[Unit] = ()) -> Unit | None:
        return self._units.pop(0) if self._units else None


class Counting:
    """A worker that measures nothing."""

    usable = True

    def run(
        self, planned: PlannedCell, following: Sequence[PlannedCell] = ()
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        return record(planned.cell_id), tuple(modules())


def test_a_unit_is_a_reference_with_all_its_candidates_in_the_order_of_the_plan() -> None:
    cells = planned_cells("dtype=float32,bfloat16", "attention=eager,sdpa", "reference={attention:eager}")
    units = units_of(cells)
    assert [planned for unit in units for planned in unit.cells] == list(cells)
    assert len(units) == len({planned.reference_id for planned in cells}) == 2
    assert all(planned.reference_id == unit.reference_id for unit in units for planned in unit.cells)


def test_inline_makes_one_worker_and_yields_every_cell_as_it_finishes() -> None:
    cells = planned_cells("dtype=float32,bfloat16", "reference={}")
    made: list[Counting] = []
    sink = Listening()

    def make_worker(_: Sink) -> Counting:
        made.append(Counting())
        return made[-1]

    running = InlineLauncher().launch(Listed(units_of(cells)), make_worker, sink)
    assert made == []
    assert next(running).record.cell_id == cells[0].cell_id
    assert sink.started == [cells[0].cell_id]  # the second waits until the first is stored
    assert next(running).record.cell_id == cells[1].cell_id
    assert next(running, None) is None
    assert len(made) == 1


def test_every_launcher_has_a_file_in_conf_that_makes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {path.stem for path in (config_folder() / "launcher").glob("*.yaml")}
    assert names == set(LAUNCHERS)
    monkeypatch.setattr(gpus, "visible_gpus", list)
    for name in names:
        settings = request_of("checkpoint=tiny_llama", f"launcher={name}").settings
        assert settings.launcher.name == name
        make_launcher(settings).close()


def in_a_worker_process(make_worker: bytes, unit: Unit) -> list[Finished]:
    worker = pickle.loads(make_worker)(Sink())
    return [Finished(*worker.run(planned)) for planned in unit.cells]


class ProcessAUnit:
    """What a launcher of several processes comes to: a fresh process for each unit, the last unit first."""

    def plan(self, request: SweepRequest) -> Plan:
        return plan_here(request)

    def close(self) -> None:
        pass

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished]:
        pickled = pickle.dumps(make_worker)
        for unit in reversed(list(iter(work.take, None))):
            for planned in unit.cells:
                sink.cell_started(planned)
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                yield from pool.submit(in_a_worker_process, pickled, unit).result()


def test_a_launcher_of_other_processes_gives_the_same_records_in_the_order_of_the_plan(tmp_path: Path) -> None:
    def swept(name: str, launcher: InlineLauncher | ProcessAUnit) -> tuple[list[CellRecord], Listening]:
        sink = Listening()
        request = request_of(*TINY, "dtype=float32,bfloat16", "reference={}", f"output_dir={tmp_path / name}")
        assert run(request, {"listening": sink}, launcher) == 0
        return Store(tmp_path / name / "single" / "s").records(), sink

    inline, told_inline = swept("inline", InlineLauncher())
    elsewhere, told = swept("elsewhere", ProcessAUnit())
    assert told.finished == told_inline.finished[::-1]
    assert told.ended == told_inline.ended == told_inline.finished
    own = {"attempt", "started_at", "cost"}
    assert [one.model_dump(exclude=own) for one in elsewhere] == [one.model_dump(exclude=own) for one in inline]
    assert swept("elsewhere", ProcessAUnit())[1].skipped == told_inline.finished
