"""What the cells of a sweep share changes no bit: each against itself alone, some in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sweeper.environment import environment
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.store import MODULES_FILE, Store
from sweeper.sweep import run as app
from sweeper.sweep.runner import Runner
from tests.composing import request_of

pytestmark = pytest.mark.slow

TINY = (
    "checkpoint=tiny_llama",
    "inputs=report_2",
    "wandb.mode=disabled",
    "verdict=false",
    "latency_repeats=1",
    "sweep=s",
)
GRID = (
    "dtype=float32,bfloat16",
    "load_strategy=dtype_at_load,cast_after_load,cast_before_move,auto_then_cast,device_map,autocast",
    "attention=eager,sdpa",
    "layout=padded_left,packed",
    "numerics=default,deterministic",
)
STEP = 29  # through 88 cells: other strategies, dtypes, layouts, backends and flags each time


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Plan, Path]]:
    """The sweep in this process: its plan, and its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        request = request_of(*TINY, *GRID, f"output_dir={tmp_path_factory.mktemp('together')}")
        plan = make_plan(request, environment("cpu"))
        assert app.run(request) == 0
        assert sum(planned.unsupported is None for planned in plan.cells) == 88  # autocast has no float32
        yield plan, plan.folder


def figures(folder: Path, cell_id: str) -> tuple[dict[str, Any], bytes]:
    """`cell.json` without what tells when it ran and how fast, and `modules.parquet` as it is."""
    record = json.loads((folder / "cells" / cell_id / "cell.json").read_text())
    for key in ("attempt", "started_at", "cost"):
        del record[key]
    return record, (folder / "cells" / cell_id / MODULES_FILE).read_bytes()


def test_every_cell_equals_the_cell_alone(together: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = together
    store = Store(tmp_path)
    store.open({})
    for planned in plan.cells:
        alone = Runner(plan.environment, latency_repeats=1, verdict=False, say=print)
        store.write(*alone.run(planned))
        assert figures(tmp_path, planned.cell_id) == figures(folder, planned.cell_id), planned.cell.axes()


def test_cells_equal_the_cell_in_a_process_of_its_own(together: tuple[Plan, Path], tmp_path: Path) -> None:
    plan, folder = together
    runnable = [planned for planned in plan.cells if planned.unsupported is None]
    for planned in runnable[::STEP]:
        axes = planned.cell.axes()
        overrides = [f"{axis}={axes[axis]}" for axis in ("dtype", "load_strategy", "attention", "layout", "numerics")]
        command = [sys.executable, "-m", "sweeper", *TINY, "device=cpu", *overrides, f"output_dir={tmp_path}"]
        subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parents[2])
        assert figures(tmp_path / "single" / "s", planned.cell_id) == figures(folder, planned.cell_id), overrides
