"""Kills, damages and company: whether a sweep loses, doubles or misreads a cell. On a CPU, with tiny_llama.

    python -m scripts.bench_reliability                                      200 kills, 100 damages, 10 processes
    python -m scripts.bench_reliability --kills 8 --damages 6 --processes 4  what the tests run

- A kill: `python -m sweeper` is started, and ended by SIGKILL at a random moment; the same command goes on. A sweep
  that is whole is checked, and the next one begins in another folder. In each `--workers-every`th, cells run in a
  process of their own (`isolation=process`); in each `--wandb-every`th, W&B is written offline.
- A damage: one file of a whole sweep is changed; `report` and `dry_run` must name it and end without a
  traceback, the same command must run that cell again and no other, and its figures must come out as they were.
- Company: so many processes are started in one new folder at once. Each cell must run once.

Processes are forked from one that has imported torch (workers are not), so that a kill meets cells and not imports.
Prints one JSON line a part; exit code 1 where anything is not as it must be.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from sweeper.records.cell import CellRecord, Status
from sweeper.records.store import Store
from sweeper.records.sweep import read_description
from tests.damage import ANY_FILE, JSON_FILE, WHOLE_FOLDER

CELLS = 36
SWEEP = [
    *("checkpoint=tiny_llama", "device=cpu", "inputs=report_2", "verdict=false", "latency_repeats=0", "sweep=s"),
    *("dtype=bfloat16,float16,float32", "attention=eager,sdpa,sdpa_math", "use_cache=true,false"),
    "positions=explicit,implicit",
]
IMPORTS = 5  # times as long, where a process that is started anew imports torch first
ALONE = "it gets one of its own"  # what is said of a cell in which two processes were killed
RAN = re.compile(r"\] (.+): (?:ok|failed|unsupported).* \([\d.]+ s\)$")
IMPORTED = (
    *("sweeper.cli.compose", "sweeper.sweep.runner", "sweeper.sinks.registry", "sweeper.reports.page.page"),
    *("sweeper.metrics.cpu.pair", "sweeper.metrics.cpu.language", "transformers.models.llama.modeling_llama"),
    *("transformers.generation.utils", "transformers.models.auto.tokenization_auto", "torch._dynamo", "numba"),
)
LATEST_CPU_S = 2.5  # a kill comes before a process has computed for so long; a whole sweep takes twice that


class Failures:
    """Collects what was not as it must be."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def unless(self, holds: bool, line: str) -> None:
        if not holds:
            self.lines.append(line)
            print(f"NOT AS IT MUST BE: {line}", file=sys.stderr)


class Child:
    """`sweeper ARGUMENTS` in a forked process, what it prints in a file."""

    def __init__(self, arguments: Sequence[str], log: Path) -> None:
        self.log = log
        self.pid = os.fork()
        if self.pid == 0:
            self._become(arguments)

    def _become(self, arguments: Sequence[str]) -> None:
        code = 70
        try:
            os.setsid()
            file = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, 1)
            os.dup2(file, 2)
            from sweeper.cli.main import dispatch

            sys.argv = ["sweeper", *arguments]
            code = int(dispatch(list(arguments)) or 0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def ended(self, timeout_s: float) -> int | None:
        """Its exit code; None where it still runs when the time is up."""
        until = time.monotonic() + timeout_s
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > until:
                return None
            time.sleep(0.005)

    def ended_before(self, cpu_s: float) -> int | None:
        """Its exit code; None where it, with those that it started, has computed for so long."""
        while (code := self.ended(0)) is None:
            if self._cpu_s() > cpu_s:
                return None
            time.sleep(0.005)
        return code

    def _cpu_s(self) -> float:
        own = psutil.Process(self.pid)
        used = 0.0
        for process in (own, *own.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                used += sum(process.cpu_times()[:2])
        return used

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    @property
    def ran(self) -> list[str]:
        """Labels of the cells that it ran to their end."""
        return [found[1] for line in self.said.splitlines() if (found := RAN.search(line))]


def figures(record: CellRecord) -> str:
    """What a record says that was measured."""
    return record.model_dump_json(exclude={"attempt", "started_at", "cost", "environment"})


def check_whole(folder: Path, failures: Failures) -> dict[str, str]:
    """Every planned cell has one whole record, and nothing else lies there. Returns cell id -> figures."""
    store, planned = Store(folder), read_description(folder).cells
    records = {record.cell_id: record for record in store.records()}
    failures.unless(len(planned) == CELLS and {*records} == {pair.cell_id for pair in planned}, f"{folder}: cells")
    failures.unless(all(record.status is Status.OK for record in records.values()), f"{folder}: not all are ok")
    failures.unless(all(store.modules(cell_id) for cell_id in records), f"{folder}: modules")
    left = [path.name for path in store.cells_folder.iterdir() if path.name not in records]
    failures.unless(not left, f"{folder}: {left} is left over")
    return {cell_id: figures(record) for cell_id, record in records.items()}


def check_wandb(folder: Path, failures: Failures) -> None:
    """A finished run for each cell and one for the sweep, each id once."""
    from sweeper.sinks.wandb.folder import is_finished
    from tests.sinks.wandb_files import read_runs

    runs = read_runs(folder)
    kinds = Counter(run.run.job_type for run in runs)
    failures.unless(kinds == {"cell": CELLS, "sweep": 1}, f"{folder}: runs of W&B: {dict(kinds)}")
    failures.unless(len({run.run.run_id for run in runs}) == len(runs), f"{folder}: an id of W&B is there twice")
    failures.unless(all(is_finished(run.folder) for run in runs), f"{folder}: a run of W&B is not finished")


def kills(root: Path, asked: argparse.Namespace, draw: random.Random, failures: Failures) -> dict[str, Any]:
    done, sweeps, lost, runs, worker_sweeps, wandb_sweeps = 0, 0, 0, 0, 0, 0
    expected: dict[str, str] = {}
    while done < asked.kills:
        sweeps += 1
        folder = root / f"kills_{sweeps}"
        more = ["isolation=process"] * (asked.workers_every > 0 and sweeps % asked.workers_every == 0)
        with_wandb = asked.wandb_every > 0 and sweeps % asked.wandb_every == 0
        command = [*SWEEP, f"output_dir={folder}", f"wandb.mode={'offline' if with_wandb else 'disabled'}", *more]
        labels: Counter[str] = Counter()
        code, spawns = None, bool(more)
        while code is None:
            child = Child(command, root / "log")
            latest = LATEST_CPU_S * (IMPORTS if spawns else 2 if with_wandb else 1)
            code = child.ended_before(draw.uniform(0, latest)) if done < asked.kills else child.ended(600)
            if code is None:
                child.kill()
                done += 1
            labels.update(child.ran)
            spawns = bool(more) or ALONE in child.said
            failures.unless("Traceback" not in child.said, f"kill {done}: {child.said[-2000:]}")
        failures.unless(code == 0, f"sweep {sweeps} ended with {code}: {child.said[-2000:]}")
        found = check_whole(folder / "single" / "s", failures)
        if with_wandb:
            check_wandb(folder / "single" / "s", failures)
            wandb_sweeps += 1
        worker_sweeps += bool(more)
        failures.unless(found == (expected or found), f"sweep {sweeps}: other figures than the first sweep's")
        expected = found
        twice = [label for label, times in labels.items() if times > 1]
        failures.unless(not twice, f"sweep {sweeps}: ran twice to their end: {twice}")
        runs += labels.total()
        lost += CELLS - labels.total()
        print(f"{done} kills, {sweeps} sweeps", file=sys.stderr, flush=True)
    return {
        "kills": done,
        "sweeps": sweeps,
        "with workers": worker_sweeps,
        "with W&B": wandb_sweeps,
        "cells": sweeps * CELLS,
        "told of as run": runs,
        "killed between storing and telling": lost,
    }


def damages(root: Path, asked: argparse.Namespace, draw: random.Random, failures: Failures) -> dict[str, Any]:
    command = [*SWEEP, f"output_dir={root / 'damaged'}", "wandb.mode=disabled"]
    folder = root / "damaged" / "single" / "s"
    Child(command, root / "log").ended(600)
    before = check_whole(folder, failures)
    kinds: Counter[str] = Counter()
    for number in range(asked.damages):
        place, name, path = _damaged(folder, draw)
        kinds[place] += 1
        what = f"damage {number}, {name} of {path}"
        for arguments in (["report", str(folder)], [*command, "dry_run=true"], command):
            child = Child(arguments, root / "log")
            code = child.ended(600)
            said = child.said
            failures.unless("Traceback" not in said, f"{what}: {arguments[0]}: {said[-2000:]}")
            named = (
                str(path) in said
                or f"{path.parent}: no {path.name}" in said
                or (place == "cell" and str(path.parent) in said)
            )
            must_name = place == "cell" or arguments is command or arguments[0] == "report"
            failures.unless(named or not must_name, f"{what}: {arguments[0]} does not name it: {said[-500:]}")
            failures.unless(code == (2 if place == "list" and arguments[0] == "report" else 0), f"{what}: code {code}")
        ran = len(child.ran)
        failures.unless(ran == (place == "cell"), f"{what}: {ran} cells ran again")
        failures.unless(check_whole(folder, failures) == before, f"{what}: other figures")
        print(f"{number + 1} damages", file=sys.stderr, flush=True)
    return {"damages": asked.damages, **kinds}


def _damaged(folder: Path, draw: random.Random) -> tuple[str, str, Path]:
    """Damages something; returns what kind of thing, how, and the file."""
    place = draw.choices(["cell", "list"], weights=[9, 1])[0]
    if place == "list":
        name = draw.choice(["missing", "empty", "cut in half", "binary", "zeros", "newer", "deep", "UTF-16"])
        (ANY_FILE | JSON_FILE)[name](path := folder / "sweep.json")
        return "list", name, path
    cell = draw.choice(sorted((folder / "cells").iterdir()))
    file = draw.choice([*sorted(path.name for path in cell.iterdir()), ""])
    if not file:
        name = draw.choice(sorted(WHOLE_FOLDER))
        WHOLE_FOLDER[name](cell)
        return "cell", name, cell / "cell.json" if name == "of another cell" else cell
    kinds = ANY_FILE | (JSON_FILE if file == "cell.json" else {})
    if file == "SHA256SUMS":
        kinds = {name: ANY_FILE[name] for name in ("empty", "cut in half", "binary", "a folder")}
    name = draw.choice(sorted(kinds))
    kinds[name](cell / file)
    return "cell", name, cell / file


def company(root: Path, asked: argparse.Namespace, failures: Failures) -> dict[str, Any]:
    command = [*SWEEP, f"output_dir={root / 'company'}", "wandb.mode=disabled"]
    start = time.monotonic()
    children = [Child(command, root / f"log_{number}") for number in range(asked.processes)]
    codes = [child.ended(600) for child in children]
    labels = Counter(label for child in children for label in child.ran)
    failures.unless(set(codes) == {0}, f"company: ended with {codes}")
    failures.unless(labels.total() == len(labels) == CELLS, f"company: {labels.total()} runs of {len(labels)} cells")
    failures.unless(not any("Traceback" in child.said for child in children), "company: a traceback")
    check_whole(root / "company" / "single" / "s", failures)
    by_each = sorted(len(child.ran) for child in children)
    seconds = round(time.monotonic() - start, 1)
    return {
        "processes": asked.processes,
        "cells": CELLS,
        "runs": labels.total(),
        "by each": by_each,
        "seconds": seconds,
    }


def left_running(root: Path) -> list[str]:
    """Command lines of processes that still work in the folder."""
    found = []
    for process in psutil.process_iter(["pid", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if str(root) in line and process.pid != os.getpid():
            found.append(line)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--damages", type=int, default=100)
    parser.add_argument("--processes", type=int, default=10)
    parser.add_argument("--workers-every", type=int, default=2, help="sweeps, of those that are killed; 0 is never")
    parser.add_argument("--wandb-every", type=int, default=2, help="sweeps, of those that are killed; 0 is never")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    for module in IMPORTED:
        importlib.import_module(module)

    failures, draw = Failures(), random.Random(asked.seed)
    print(json.dumps({"python": platform.python_version(), "cores": os.cpu_count(), "seed": asked.seed}))
    with tempfile.TemporaryDirectory(prefix="reliability_") as name:
        root = Path(name)
        os.environ["SWEEPER_CACHE"] = str(root / "cache")
        if asked.kills:
            print(json.dumps(kills(root, asked, draw, failures)), flush=True)
        if asked.damages:
            print(json.dumps(damages(root, asked, draw, failures)), flush=True)
        if asked.processes:
            print(json.dumps(company(root, asked, failures)), flush=True)
        time.sleep(1)
        failures.unless(not (left := left_running(root)), f"still running: {left}")
    print(json.dumps({"not as it must be": len(failures.lines)}))
    return int(bool(failures.lines))


if __name__ == "__main__":
    sys.exit(main())
