"""An assertion in a kernel, after which CUDA refuses everything: it costs one cell, wherever cells run."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from sweeper.launchers.registry import make_launcher
from sweeper.planning.plan import PlannedCell, make_plan
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import Store
from sweeper.sinks.sink import Sink
from sweeper.sweep import run
from tests.composing import request_of

make_runner = run._make_runner


class Asserting:
    """A worker one of whose cells looks beyond the end of a tensor."""

    def __init__(self, worker: Any, cell_id: str, *, on_cpu: bool) -> None:
        self._worker = worker
        self._cell_id = cell_id
        self._on_cpu = on_cpu
        measure = worker._measure

        def asserting(planned: PlannedCell, *rest: Any) -> Any:
            if planned.cell_id == cell_id:
                if on_cpu:  # nothing there refuses anything: it is only claimed
                    raise RuntimeError("device-side assert triggered")
                torch.zeros(1, device="cuda")[torch.tensor([5], device="cuda")].sum().item()
            return measure(planned, *rest)

        worker._measure = asserting

    @property
    def usable(self) -> bool:
        return self._worker.usable

    def run(
        self, planned: PlannedCell, following: Sequence[PlannedCell] = ()
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        result = self._worker.run(planned)
        if self._on_cpu and planned.cell_id == self._cell_id:
            self._worker.usable = False
        return result


def asserting_runner(sink: Sink, *, cell_id: str, on_cpu: bool, **settings: Any) -> Asserting:
    return Asserting(make_runner(sink, **settings), cell_id, on_cpu=on_cpu)


@pytest.mark.parametrize("isolation", ["none", "process"])
def test_a_lost_device_costs_one_cell(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, isolation: str
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tiny = ("checkpoint=tiny_llama", f"device={device}", "wandb.mode=disabled", "sweep=s", "verdict=false")
    grid = ("dtype=float32,bfloat16", "attention=eager,sdpa", f"output_dir={tmp_path}", f"isolation={isolation}")
    request = request_of(*tiny, *grid)
    from sweeper.environment import environment

    cells = [planned.cell_id for planned in make_plan(request, environment(device)).cells]
    monkeypatch.setattr(run, "_make_runner", partial(asserting_runner, cell_id=cells[1], on_cpu=device == "cpu"))
    assert run.run(request, {}, make_launcher(request.settings)) == 1
    records = Store(tmp_path / "single" / "s").records()
    ended = {record.cell_id: record.status for record in records}
    assert ended == dict.fromkeys(cells, Status.OK) | {cells[1]: Status.FAILED}
    (failed,) = (record for record in records if record.status is Status.FAILED)
    assert "device-side assert triggered" in f"{failed.reason} {failed.traceback}"
