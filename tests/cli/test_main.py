from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sweeper.cli import main as cli
from sweeper.cli import run
from sweeper.config import Attention, Dtype, Layout, LoadStrategy, Positions, Settings
from sweeper.errors import CheckpointError
from tests.composing import write_grid

ROOT = Path(__file__).resolve().parents[2]
PLAN = ("checkpoint=tiny_llama", "device=cpu", "dry_run=true")


def sweeper(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sweeper", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_help_lists_all_axes_grids_and_settings(tmp_path: Path) -> None:
    done = sweeper("--help", "--config-dir", str(write_grid(tmp_path, "my_own", "dtype: float16\n")), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for kind in (Dtype, LoadStrategy, Attention, Layout, Positions):
        assert all(value in done.stdout for value in kind)
    for path in ROOT.glob("conf/*/*.yaml"):
        assert path.stem in done.stdout or path.parent.name not in ("checkpoint", "grid", "inputs", "numerics")
    assert all(setting in done.stdout for setting in Settings.model_fields)
    assert "my_own" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 120


def test_help_imports_neither_torch_nor_hydra(tmp_path: Path) -> None:
    done = sweeper("--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "sweeper.cli.help" in imported
    assert not imported & {"torch", "transformers", "hydra", "wandb", "pandas", "pyarrow"}


def test_threads_spin_briefly_unless_somebody_chose_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen, expected in (({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)):
        with monkeypatch.context() as context:
            for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
                context.delenv(name, raising=False)
            for name, value in chosen.items():
                context.setenv(name, value)
            context.setattr(os, "environ", dict(os.environ))
            run._let_threads_rest()
            assert os.environ.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize("order", ["-m {}", "{} -m", "+grid=load_strategy -m dtype=float16", "{}"])
def test_minus_m_may_stand_anywhere_and_be_left_out(tmp_path: Path, order: str) -> None:
    done = sweeper(*PLAN, *order.format("+grid=load_strategy dtype=float16").split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 cells to run" in done.stdout
    assert "dtype=float16" in done.stdout
    assert list(tmp_path.iterdir()) == []  # neither Hydra nor a dry run writes anything


def test_a_users_own_grid_and_checkpoint_from_another_folder(tmp_path: Path) -> None:
    body = "defaults: [{override /checkpoint: mine}]\nhydra: {sweeper: {params: {dtype: 'float32,float16'}}}\n"
    conf = write_grid(tmp_path, "own", body)
    (conf / "checkpoint").mkdir()
    (conf / "checkpoint" / "mine.yaml").write_text(f"{{source: folder, name: mine, path: {tmp_path / 'model'}}}")
    (tmp_path / "model").mkdir()
    save_file({"unused": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaModel"]}')
    ids = ("inputs=token_ids", "inputs.token_ids=[[1,2]]")
    done = sweeper("+grid=own", "--config-dir", str(conf), "device=cpu", "dry_run=true", *ids, cwd=tmp_path)
    assert done.returncode == 0
    lines = done.stderr.splitlines()  # a package that transformers imports may warn there
    assert [line for line in lines if line.startswith("sweeper")] == []
    assert "checkpoint=mine" in done.stdout
    assert f"folder: {Path('outputs/own')}" in done.stdout
    assert "2 cells to run" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ("dtype=fp32", "type dtype=float32"),
        ("checkpoint=nope", "checkpoint: no config named 'nope'. Allowed: folder, hub, "),
        ("numerics=default,nope", "numerics: no config named 'nope'. Allowed: "),
        ("dtyp=float32", "did you mean dtype?"),
        ("wandb.mod=offline", "did you mean wandb.mode?"),
        ("checkpoint.sed=1", "checkpoint.sed: no such setting"),
        ("+grid=bf16_vs_fp32,load_strategy", "one grid at a time"),
        ("grid=load_strategy", "+grid=NAME"),
        ("+grid=nope", "grid: no config named 'nope'. Allowed: attention_backends, "),
        ("checkpoint=folder", "checkpoint.path: a value is missing; type checkpoint.path=..."),
        ("reference={dtyp:float32}", "reference.dtyp: no such axis"),
        ("reference.dtype=float64", "write the whole reference"),
        ("hydra.sweeper.exclude=[{attention:sdpa}]", "no cell is left"),
        ("dtype", "cannot read 'dtype'; write KEY=VALUE"),
        ("launcher=inlin", "launcher: no config named 'inlin'. Allowed: gpus, inline, ray, slurm"),
        ("launcher=ray launcher.workers=0", "sweeper: launcher.workers: Input should be greater than or equal to 1"),
        ("launcher=slurm +launcher.job=1", "launcher.job: no such setting; did you mean jobs?"),
        ("cell_timeout_s=5", "cell_timeout_s=5 can end a cell only in another process; add isolation=process"),
        ("--nope", "--nope: no such option"),
        ("--run", "--run: no such option"),
        ("--config-dir", "expected one argument"),
        ("--config-dir /nowhere/at/all", "/nowhere/at/all"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path: Path, arguments: str, part: str) -> None:
    done = sweeper(*PLAN, *arguments.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert part in done.stderr


def test_full_error_keeps_the_traceback(tmp_path: Path) -> None:
    done = sweeper(*PLAN, "dtype=fp32", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert "Traceback" in done.stderr
    assert "ConfigError: dtype: " in done.stderr


def test_cfg_prints_the_composed_config(tmp_path: Path) -> None:
    done = sweeper("+grid=load_strategy", "-m", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0
    assert "load_strategy: dtype_at_load" in done.stdout


@pytest.mark.parametrize(
    ("outcome", "code"),
    [(0, 0), (1, 1), (KeyboardInterrupt(), 130), (CheckpointError("no network"), 2)],
)
def test_what_a_sweep_ends_with_reaches_the_shell(
    monkeypatch: pytest.MonkeyPatch, outcome: int | BaseException, code: int
) -> None:
    def carry_out(request: object) -> int:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(run, "carry_out", carry_out)
    monkeypatch.setattr(sys, "argv", ["sweeper"])
    assert cli.dispatch(PLAN) == code
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize("name", cli.SUBCOMMANDS)
def test_every_subcommand_has_help_that_imports_nothing_heavy(tmp_path: Path, name: str) -> None:
    assert name in sweeper("--help", cwd=tmp_path).stdout
    done = sweeper(name, "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert done.returncode == 0
    assert done.stdout.startswith("sweeper:" if name == "run" else f"usage: sweeper {name}")
    assert "sweeper.errors" in imported
    assert not imported & {"torch", "transformers", "hydra", "wandb", "pandas", "pyarrow", "rich"}


def test_run_may_be_written_out(tmp_path: Path) -> None:
    done = sweeper("run", *PLAN, "+grid=load_strategy", "-m", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "6 cells to run" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("reprot some/folder", "sweeper: reprot: no such subcommand; did you mean report? Allowed: run, report, "),
        ("dtype", "sweeper: dtype: no such subcommand. Allowed: run, report, "),
        ("run report", "sweeper run: cannot read 'report'; write KEY=VALUE"),
        ("report /nowhere", "sweeper report: /nowhere: no sweep.json in it"),
        ("explain /nowhere abc", "sweeper explain: /nowhere: no sweep.json in it"),
        ("published page.md /nowhere", "sweeper published: /nowhere: no sweep.json in it"),
    ],
)
def test_a_wrong_word_behind_the_command_is_one_line(tmp_path: Path, arguments: str, line: str) -> None:
    done = sweeper(*arguments.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(line)


_ABORTS_AT_ITS_END = """
import atexit, ctypes, sys
library = ctypes.CDLL(None)
library.__cxa_atexit(ctypes.cast(library.abort, ctypes.c_void_p), None, None)
from sweeper.cli import main as cli
def dispatch(arguments):
    atexit.register(print, "what Python code has to do at its end")
    print("told")
    {end}
cli.dispatch = dispatch
cli.command()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("return 0", 0),
        ("return None", 0),
        ("return 2", 2),
        ("raise SystemExit('a sentence')", 1),
        ("raise ValueError('an error that is not ours')", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_a_native_library_that_aborts_at_the_end_does_no_harm(end: str, code: int) -> None:
    words = [sys.executable, "-c", _ABORTS_AT_ITS_END.format(end=end)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stdout.splitlines() == ["told", "what Python code has to do at its end"]
    assert ("an error that is not ours" in done.stderr) is ("ValueError" in end)


def test_a_crash_in_native_code_says_which_line_called_it() -> None:
    crash = "import ctypes\n    ctypes.CDLL(None).abort()"
    words = [sys.executable, "-c", _ABORTS_AT_ITS_END.format(end=crash)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGABRT
    assert "Fatal Python error: Aborted" in done.stderr
    assert "in dispatch" in done.stderr
