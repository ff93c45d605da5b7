"""A handful of what `scripts/bench_reliability.py` does two hundred times; `docs/reliability.md` has the whole."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HANDFUL = ("--kills", "3", "--damages", "4", "--processes", "2", "--workers-every", "0", "--wandb-every", "0")


@pytest.mark.slow
def test_kills_damages_and_company_lose_and_double_nothing() -> None:
    command = [sys.executable, "-m", "scripts.bench_reliability", *HANDFUL]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    parts = [json.loads(line) for line in done.stdout.splitlines()]
    assert parts[1]["kills"] == 3
    assert parts[2]["damages"] == 4
    assert parts[3]["runs"] == parts[3]["cells"]
    assert parts[-1] == {"not as it must be": 0}


def test_what_is_not_as_it_must_be_is_counted() -> None:
    from scripts.bench_reliability import RAN, Failures

    failures = Failures()
    failures.unless(True, "fine")
    failures.unless(False, "not fine")
    assert failures.lines == ["not fine"]
    found = RAN.search("[3/36] bfloat16 eager use_cache=True: ok (0.1 s)")
    assert found
    assert found[1] == "bfloat16 eager use_cache=True"
    assert RAN.search("[3/36] bfloat16 eager: finished before, skipped") is None
