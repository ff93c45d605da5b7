"""Scripts that no other test runs know the names of what they measure."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

SCRIPTS = sorted(path.stem for path in (Path(__file__).parent.parent / "scripts").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported(name: str) -> None:
    assert importlib.import_module(f"scripts.{name}").__doc__


def test_bench_sweep_times_functions_that_exist() -> None:
    from scripts.bench_sweep import PHASES

    assert all(callable(getattr(owner, name)) for functions in PHASES.values() for owner, name in functions)
