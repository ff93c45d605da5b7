"""A cell that ends its process: what becomes of its sweep, with and without a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sweeper.planning.plan import make_plan
from sweeper.records.cell import CellRecord, Status
from sweeper.records.store import Store
from sweeper.sinks.sink import Sink
from tests.composing import request_of
from tests.launchers.test_processes import Mortal

GRID = ("checkpoint=tiny_llama", "dtype=float32,bfloat16,float16", "verdict=false", "sweep=s")
SWEEP = """
import sys
import sweeper.sweep.run as run
from sweeper.launchers.registry import make_launcher
from sweeper.sinks.terminal import TerminalSink
from tests.composing import request_of
from tests.sweep.test_isolation import mortal

run._make_runner = mortal
request = request_of(*sys.argv[1:])
sys.exit(run.run(request, {"terminal": TerminalSink()}, make_launcher(request.settings)))
"""


def mortal(sink: Sink, **_: Any) -> Mortal:
    """Makes the worker that the environment describes."""
    return Mortal(sink, folder=Path.cwd(), acts=json.loads(os.environ["ACTS"]))


def swept(folder: Path, acts: dict[str, str], *arguments: str) -> tuple[int, dict[str, CellRecord]]:
    """The exit code, and the records that lie there then."""
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "ACTS": json.dumps(acts)}
    command = [sys.executable, "-c", SWEEP, *GRID, *arguments]
    code = subprocess.run(command, cwd=folder, env=settings, timeout=300, capture_output=True).returncode
    return code, {record.cell_id: record for record in Store(folder / "outputs" / "single" / "s").records()}


def cell_ids() -> list[str]:
    from sweeper.environment import environment

    return [planned.cell_id for planned in make_plan(request_of(*GRID), environment("cpu")).cells]


def test_the_same_command_does_not_die_of_the_same_cell_for_ever(tmp_path: Path) -> None:
    first, second, third = cell_ids()
    acts = {second: "segfault"}
    for _ in range(2):
        code, records = swept(tmp_path, acts)
        assert (code, set(records)) == (-11, {first})
    code, records = swept(tmp_path, acts)
    assert code == 1
    assert {cell_id: record.status for cell_id, record in records.items()} == {
        first: Status.OK,
        second: Status.FAILED,
        third: Status.OK,
    }
    assert records[second].reason == "the process that ran it ended: signal 11 (SIGSEGV)"
    assert swept(tmp_path, acts)[0] == 1, "it died of it again, once the cell had a record"
    assert swept(tmp_path, {})[1][second].status is Status.OK
    assert not (tmp_path / "outputs" / "single" / "s" / "claims").exists()


def test_with_isolation_the_first_command_goes_on_after_it(tmp_path: Path) -> None:
    first, second, third = cell_ids()
    code, records = swept(tmp_path, {second: "abort"}, "isolation=process")
    assert code == 1
    assert [records[cell_id].status for cell_id in (first, second, third)] == [Status.OK, Status.FAILED, Status.OK]
    assert records[second].reason == "the process that ran it ended: signal 6 (SIGABRT)"
