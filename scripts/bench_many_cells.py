"""What thousands of cells in one process cost: memory, handles, threads, the page, and planning, on a CPU.

    python scripts/bench_many_cells.py run --cells 5000 [--verdict] [--wandb]   tiny_llama, a text of a few tokens
    python scripts/bench_many_cells.py plan --cells 10000                       `dry_run=true`, in its own process

Prints one JSON line every 200 cells, then one for the whole: growth of resident memory a thousand cells after the
first hundred (to the last line), the size of the page, the seconds. The cells are all combinations of axes that a CPU
has, over as many inputs as it takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import psutil

from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.sinks.sink import Sink

ROOT = Path(__file__).parent.parent
AXES = {
    "dtype": "bfloat16,float16,float32",
    "attention": "eager,sdpa,sdpa_math",
    "load_strategy": "dtype_at_load,cast_after_load,device_map",
    "positions": "explicit,implicit",
    "use_cache": "true,false",
    "numerics": "default,deterministic",
}
OF_AN_INPUT = 216  # combinations of the axes above
FIXED = ("checkpoint=tiny_llama", "device=cpu", "latency_repeats=0", "sweep=many")
WANDB_FOLDERS = ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")
STEP = 200  # cells between two lines
SETTLED = 100  # cells after which what is cached once is there


def arguments_of(folder: Path, cells: int, *more: str) -> list[str]:
    """The command line of a sweep of so many cells or a few more; writes the inputs that it names."""
    names = [f"text_{number}" for number in range(-(-cells // OF_AN_INPUT))]
    (folder / "inputs").mkdir()
    for number, name in enumerate(names):
        settings = {"name": name, "texts": ["a harbour"[: 2 + number % 8]], "max_tokens": None, "batch_size": 8}
        (folder / "inputs" / f"{name}.yaml").write_text(json.dumps(settings))
    axes = [f"{axis}={values}" for axis, values in AXES.items()]
    return ["--config-dir", str(folder), *FIXED, *axes, f"inputs={','.join(names)}", f"output_dir={folder}", *more]


class Gauge(Sink):
    """Reads memory, handles and threads of this process as cells finish."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._started = time.perf_counter()
        self.points: list[dict[str, Any]] = []
        self.cells = 0
        self.not_ok = 0

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self.cells += 1
        self.not_ok += record.status is not Status.OK
        if self.cells == SETTLED or self.cells % STEP == 0:
            self.point()

    def point(self) -> None:
        found = {
            "cells": self.cells,
            "rss_mib": round(self._process.memory_info().rss / 2**20, 1),
            "handles": self._process.num_fds(),
            "threads": self._process.num_threads(),
            "seconds": round(time.perf_counter() - self._started, 1),
        }
        self.points.append(found)
        print(json.dumps(found), file=sys.__stdout__, flush=True)


def measure_run(folder: Path, cells: int, verdict: bool, wandb: bool) -> None:
    """Runs the sweep in this process, with every sink that a sweep has; W&B, offline, where it is asked for."""
    from sweeper.cli import run as command
    from sweeper.sinks import registry

    gauge = Gauge()
    os.environ |= {name: str(folder / name.lower()) for name in WANDB_FOLDERS}
    settings = (f"verdict={str(verdict).lower()}", f"wandb.mode={'offline' if wandb else 'disabled'}")
    registry.SINKS = {**registry.SINKS, "gauge": lambda _: gauge}
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        code = command.main(arguments_of(folder, cells, *settings))
    if code:
        raise SystemExit(f"the sweep ended with {code}")
    gauge.point()
    first, last = gauge.points[0], gauge.points[-2]
    (page,) = folder.rglob("index.html")
    grown = (last["rss_mib"] - first["rss_mib"]) / (last["cells"] - first["cells"])
    summary = {
        "cells": gauge.cells,
        "not ok": gauge.not_ok,
        "verdict": verdict,
        "wandb": wandb,
        "growth_mib_per_1000_cells": round(1000 * grown, 1),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "page_mib": round(page.stat().st_size / 2**20, 2),
    }
    print(json.dumps(summary))


def measure_plan(folder: Path, cells: int) -> None:
    command = [sys.executable, "-m", "sweeper", *arguments_of(folder, cells, "dry_run=true", "wandb.mode=disabled")]
    start = time.perf_counter()
    shown = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = {"wall_s": time.perf_counter() - start, "cpu_s": used.ru_utime + used.ru_stime}
    print(json.dumps({**{name: round(value, 2) for name, value in seconds.items()}, "says": shown.splitlines()[-2]}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "plan"])
    parser.add_argument("--cells", type=int, default=5000)
    parser.add_argument("--verdict", action="store_true")
    parser.add_argument("--wandb", action="store_true")
    asked = parser.parse_args()
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count(), "machine": platform.processor()}))
    with tempfile.TemporaryDirectory(prefix="many_cells_") as folder:
        if asked.what == "plan":
            measure_plan(Path(folder), asked.cells)
        else:
            measure_run(Path(folder), asked.cells, asked.verdict, asked.wandb)


if __name__ == "__main__":
    main()
