"""What only some need is an extra: without it, one line says what to install, and nothing else stops."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sweeper.errors import ConfigError
from sweeper.metrics import fast
from sweeper.records.frames import OpenedSweep
from tests.sinks.sweeps import report_1

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
WITHOUT = """
import importlib.machinery, sys

class Absent:
    names = {"wandb", "wandb_workspaces", "pandas", "numba"}

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self) if name.partition(".")[0] in self.names else None

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module):
        raise AssertionError

sys.meta_path.insert(0, Absent())
from sweeper.cli.main import dispatch
sys.exit(dispatch(sys.argv[1:]))
"""


def test_an_extra_is_no_dependency_and_the_tests_need_them_all() -> None:
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in PROJECT["dependencies"]}  # type: ignore[index]
    assert names.isdisjoint({"wandb", "wandb-workspaces", "pandas", "numba", "pillow", "soundfile", "optimum-quanto"})
    assert {"wandb", "cpu", "frames", "media", "quantised-cache"} <= EXTRAS.keys()
    assert "sweeper[wandb,cpu,frames,media,quantised-cache]" in EXTRAS["test"]


def test_without_pandas_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = OpenedSweep((report_1(tmp_path),))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match=r"a data frame needs the package pandas.*pip install 'sweeper\[frames\]'"):
        _ = opened.cells


@pytest.fixture
def _no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in sys.modules if name.startswith("sweeper.metrics.cpu.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "numba", None)
    for cached in (fast.fast_module, fast._say_slower):
        cached.cache_clear()
    yield
    for cached in (fast.fast_module, fast._say_slower):
        cached.cache_clear()


@pytest.mark.usefixtures("_no_numba")
def test_without_numba_one_line_says_that_it_is_slower(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "sweeper.metrics.fast"):
        assert fast.fast_module("cpu", "pair") is None
        assert fast.fast_module("cpu", "language") is None
    (line,) = [entry.getMessage() for entry in caplog.records if entry.name == "sweeper.metrics.fast"]
    assert line.endswith("pip install numba (or 'sweeper[cpu]')")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of the default job on a CPU")
def test_the_main_job_runs_without_any_extra(tmp_path: Path) -> None:
    grid = ["+grid=load_strategy", "checkpoint=tiny_llama", "inputs=report_2", "device=cpu", f"output_dir={tmp_path}"]
    command = [sys.executable, "-c", WITHOUT, *grid, "verdict=false"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert refused.returncode == 2
    (line,) = [line for line in refused.stderr.splitlines() if line.startswith("sweeper:")]
    assert "pip install 'sweeper[wandb]' (or wandb), or type wandb.mode=disabled" in line
    done = subprocess.run([*command, "wandb.mode=disabled"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pip install numba") == 1
