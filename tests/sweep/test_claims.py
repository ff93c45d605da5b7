"""Several processes in one folder: who runs what, and what becomes of the claim of one that dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sweeper.sweep import claims
from sweeper.sweep.claims import Claims

HOLD = """
import sys
from pathlib import Path
from sweeper.sweep.claims import Claims
claim = Claims(Path(sys.argv[1])).claim("unit")
claim.running("cell")
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """One that holds the claim `unit` and runs the cell `cell`."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def test_one_process_alone_has_a_claim_and_the_next_one_once_it_lets_go(tmp_path: Path) -> None:
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.claim("unit")
    assert second.claim("unit") is None
    assert second.claim("another")
    first.release("unit")
    assert second.claim("unit")
    for one in (first, second):
        one.close(finished=False)
    assert not list(tmp_path.iterdir()), "claims that were let go of leave nothing"


def test_the_claim_of_a_killed_process_is_taken_over_at_once_and_tells_what_it_died_of(tmp_path: Path) -> None:
    mine = Claims(tmp_path)
    for deaths in (1, 2):
        with another_process(tmp_path) as process:
            assert mine.claim("unit") is None
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            claim = mine.claim("unit")
            assert claim is not None
            assert claim.deaths == {"cell": deaths}
            mine.release("unit")
    claim = mine.claim("unit")
    assert claim is not None
    assert claim.deaths == {"cell": 2}, "letting go without having run it forgot"
    claim.running("cell")
    claim.ran("cell")
    mine.release("unit")
    mine.close(finished=False)
    assert not list(tmp_path.iterdir())


def test_a_claim_of_another_machine_counts_while_it_gives_signs_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is not seen here: the file system keeps locks to each machine."""
    folder = tmp_path / "claims"
    folder.mkdir()
    note = folder / "unit.json"
    note.write_text(json.dumps({"machine": "another", "pid": os.getpid(), "held": True, "cell": "cell", "deaths": {}}))
    mine = Claims(tmp_path)
    assert mine.claim("unit") is None
    silent = note.stat().st_mtime - claims.LEASE_S - 1
    os.utime(note, (silent, silent))
    claim = mine.claim("unit")
    assert claim is not None
    assert claim.deaths == {"cell": 1}
    os.utime(note, (silent, silent))
    monkeypatch.setattr(claims, "machine", lambda: "a third")
    claim.touch()
    mine._held["unit"]._lock.release()
    assert Claims(tmp_path).claim("unit") is None, "it was touched just now"


def test_a_note_that_cannot_be_read_keeps_nobody_out(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / "unit.json").write_bytes(b"\xff{")
    claim = Claims(tmp_path).claim("unit")
    assert claim is not None
    assert claim.deaths == {}


def test_a_finished_sweep_keeps_no_claims_of_dead_processes_and_all_of_living_ones(tmp_path: Path) -> None:
    with another_process(tmp_path) as process:
        mine = Claims(tmp_path)
        mine.close(finished=True)
        assert (tmp_path / "claims" / "unit.lock").exists()
        process.kill()
        process.wait()
        mine.close(finished=True)
    assert not list(tmp_path.iterdir())
