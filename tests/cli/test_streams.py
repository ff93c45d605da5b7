"""Standard output as it may be: closed, of another encoding, a pipe that nobody reads, a full disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sinks.sweeps import report_1

ROOT = Path(__file__).resolve().parents[2]
SWEEPER = f"{sys.executable} -m sweeper"


def shell(line: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, timeout=120, check=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return report_1(tmp_path / "s").folder


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_signs_that_an_encoding_lacks_have_others_of_the_same_width(sweep: Path, encoding: str) -> None:
    done = shell(f"{SWEEPER} report {sweep}", sweep, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode(encoding)
    assert "max |d|" in text
    assert "?" not in text


def test_a_closed_output_is_said_and_nothing_goes_into_a_file_that_is_opened_later(sweep: Path) -> None:
    done = shell(f"{SWEEPER} report {sweep} --csv cells.csv >&-", sweep)
    assert done.returncode == 0
    assert done.stderr == b"sweeper: standard output is closed; what would be printed is left out\n"
    assert (sweep / "cells.csv").read_text().startswith("grid,sweep,")
    assert "cells.csv" not in (sweep / "cells.csv").read_text()


def test_both_streams_may_be_closed(sweep: Path) -> None:
    assert shell(f"{SWEEPER} report {sweep} >&- 2>&-", sweep).returncode == 0
    assert shell(f"{SWEEPER} report /nowhere >&- 2>&-", sweep).returncode == 2


def test_a_pipe_that_is_closed_early_is_no_error(sweep: Path) -> None:
    line = f"{{ {SWEEPER} report {sweep} --cell aaaa3; echo $? >&2; }} | true"
    assert shell(line, sweep).stderr == b"0\n"
    line = f"{{ {SWEEPER} report --schema; echo $? >&2; }} | true"
    assert shell(line, sweep).stderr == b"0\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(sweep: Path) -> None:
    done = shell(f"{SWEEPER} --help > /dev/full", sweep)
    assert done.returncode == 2
    assert done.stderr == b"sweeper: standard output cannot be written: No space left on device\n"


def test_a_bad_input_under_another_encoding_is_one_line(sweep: Path) -> None:
    done = shell(f"{SWEEPER} report /nowhere/Δ", sweep, PYTHONIOENCODING="ascii")
    assert done.returncode == 2
    assert done.stderr.count(b"\n") == 1
