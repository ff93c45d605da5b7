"""Hydra as its users have it: what is taken acts, nothing stray is left, completion completes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import sweeper
from sweeper.cli import main as cli

ROOT = Path(__file__).resolve().parents[2]
TINY = ("checkpoint=tiny_llama", "device=cpu", "wandb.mode=disabled", "verdict=false", "inputs.texts=[ab,c]")


@pytest.fixture(autouse=True)
def _typed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweeper"])


def test_the_version_is_sweepers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch(["--version"]) == 0
    assert capsys.readouterr().out == f"sweeper {sweeper.__version__}\n"


def test_the_composed_config_and_what_was_typed_are_kept_with_the_sweep_and_nothing_else(tmp_path: Path) -> None:
    assert cli.dispatch([*TINY, "dtype=[float32,bfloat16]", "sweep=mine"]) == 0
    folder = tmp_path / "outputs" / "single" / "mine"
    composed = yaml.safe_load((folder / ".hydra" / "config.yaml").read_text())
    assert composed["checkpoint"]["name"] == "tiny_llama"
    assert "dtype=[float32,bfloat16]" in yaml.safe_load((folder / ".hydra" / "overrides.yaml").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]
    assert [path.name for path in (tmp_path / "outputs" / "single").iterdir()] == ["mine"]
    assert len(list((folder / "cells").glob("*/cell.json"))) == 2


def test_a_list_in_a_grid_is_several_values_and_a_setting_that_is_a_list_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "grid").mkdir(parents=True)
    params = "{attention: [eager, sdpa], inputs.token_ids: [[5, 6], [7]]}"
    body = (
        f"# @package _global_\ndefaults: [{{override /inputs: token_ids}}]\nhydra: {{sweeper: {{params: {params}}}}}\n"
    )
    (tmp_path / "conf" / "grid" / "g.yaml").write_text(body)
    ids = [word for word in TINY if not word.startswith("inputs")]
    assert cli.dispatch([*ids, "--config-dir", "conf", "+grid=g", "dry_run=true"]) == 0
    assert "2 cells to run" in capsys.readouterr().out


def test_hydras_own_words_act(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.dispatch([*TINY, "hydra.verbose=true", "dry_run=true"]) == 0
    assert "Defaults Tree" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("sweeper dty", "dtype="),
        ("sweeper checkpoint=tiny", "checkpoint=tiny_bert"),
        ("sweeper +grid=bf", "bf16_vs_fp32"),
    ],
)
def test_completion_in_bash(tmp_path: Path, line: str, offered: str) -> None:
    command = tmp_path / "sweeper"  # as the installed one: its name is what is completed
    start = f"import sys; sys.argv[0] = '{command}'; from sweeper.cli.main import main; main()"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    command.chmod(0o755)
    script = (
        'eval "$(sweeper --shell-completion install=bash)"\n'
        f'COMP_LINE="{line}"; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({line}); COMP_CWORD=1\n'
        'hydra_bash_completion; echo "${COMPREPLY[@]}"\n'
    )
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True, check=True, timeout=120)
    assert offered in done.stdout
