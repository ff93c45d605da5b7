"""How a sweep is stopped: in good order the first time, at once the second, and what it says is true."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sweeper.records.store import Store

# a sweep of cells that take a while; `STUCK` also takes long to end
SWEEP = """
import sys, time
import sweeper.sweep.run as run
from sweeper.sinks.terminal import TerminalSink
from sweeper.sinks.sink import Sink
from tests.composing import request_of
from tests.sinks.records import modules, record

class Slow:
    usable = True
    ran = 0

    def run(self, planned, following=()):
        self.ran += 1
        if self.ran == 3:
            print("third", flush=True)
            time.sleep(60)
        return record(planned.cell_id, reference_id=planned.reference_id), tuple(modules())

class Stuck(Sink):
    def interrupted(self, records):
        print("ending", flush=True)
        time.sleep(60)

run._make_runner = lambda sink, **_: Slow()
sinks = {"terminal": TerminalSink(), "stuck": Stuck()} if "STUCK" in sys.argv else {"terminal": TerminalSink()}
grid = ["checkpoint=tiny_llama", "dtype=float32,bfloat16,float16", "attention=eager,sdpa", "verdict=false", "sweep=s"]
sys.exit(run.run(request_of(*grid), sinks))
"""


def started(folder: Path, *words: str) -> subprocess.Popen[str]:
    """A sweep that is at its third cell."""
    settings = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", SWEEP, *words]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=folder, env=settings, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "third\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_ends_in_good_order_and_counts_what_is_there(tmp_path: Path, number: signal.Signals) -> None:
    process = started(tmp_path)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    folder = tmp_path / "outputs" / "single" / "s"
    assert len(Store(folder).records()) == 2
    assert "Stopped. 2 of 6 cells are finished, and kept in" in errors
    left = sorted(path.name for path in folder.iterdir())
    assert left == ["cells", "sweep.json"]
    assert not list((folder / "cells").glob(".*"))


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    process = started(tmp_path, "STUCK")
    process.send_signal(signal.SIGINT)
    assert process.stdout is not None
    assert process.stdout.readline() == "ending\n"
    start = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    assert time.monotonic() - start < 10
