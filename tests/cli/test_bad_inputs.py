"""Every bad input of `bad_inputs.py`: exit code 2, one line that says what must be said, nothing left behind."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from sweeper.cli import main as cli
from sweeper.environment import default_device
from sweeper.sweep import run
from tests.cli.bad_inputs import Bad, all_of_them

BAD = all_of_them()
PLAN = ("checkpoint=tiny_llama", "device=cpu", "wandb.mode=disabled")


def test_there_are_three_hundred_at_least() -> None:
    assert len({(one.words, tuple(one.files.items()), tuple(one.env.items())) for one in BAD}) >= 300


@pytest.fixture(scope="module", autouse=True)
def _what_libraries_say_at_their_import() -> None:
    for module in ("transformers.models.auto.modeling_auto", "transformers.models.llama.modeling_llama"):
        importlib.import_module(module)


@pytest.fixture
def typed_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder as the one where a command is typed; the cache and temporary files would lie beside it."""
    for name in ("here", "cache", "temporary"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(sys, "argv", ["sweeper"])
    monkeypatch.setattr(run, "_run_cells", _never)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path / "here"


def _never(*_: object) -> None:
    raise AssertionError("a bad input was taken for a good one")


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_bad_input(
    bad: Bad, typed_in: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in bad.files.items():
        (typed_in / name).parent.mkdir(parents=True, exist_ok=True)
        (typed_in / name).write_bytes(content)
    for name, value in bad.env.items():
        monkeypatch.setenv(name, value)
    before = everything_below(typed_in.parent)
    code = cli.dispatch(bad.words if bad.is_whole else (*PLAN, *bad.words))
    printed = capsys.readouterr()
    assert (code, printed.out, printed.err.count("\n")) == (2, "", 1), printed
    assert printed.err.startswith("sweeper")
    assert printed.err.strip().isprintable()
    assert [part for part in bad.says if part not in printed.err] == [], printed.err
    assert everything_below(typed_in.parent) == before


@pytest.mark.skipif(default_device() == "cuda", reason="a GPU is there")
@pytest.mark.parametrize("more", [(), ("+grid=attention_backends",), ("dtype=float32,float16",)])
def test_a_gpu_that_is_not_there_is_one_line(
    typed_in: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert cli.dispatch(["checkpoint=tiny_llama", "wandb.mode=disabled", "device=cuda", *more]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "sweeper: device=cuda: torch sees no GPU here; type device=cpu\n")
    assert list(typed_in.iterdir()) == []


def everything_below(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*"))
