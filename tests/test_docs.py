"""What the pages name is there: files, and what links lead to."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from scripts.cookbook import BLOCK, commands
from sweeper.cli.main import dispatch

ROOT = Path(__file__).parents[1]
PAGES = [
    "README.md",
    "case_studies/README.md",
    *(f"docs/{name}.md" for name in ("architecture", "cookbook", "extending", "measures", "reliability")),
]
FILE = re.compile(r"`((?:[\w.]+/)+[\w.]*|\w+\.(?:py|yaml|md))`")
LINK = re.compile(r"\]\(((?!https?:)[^)#]+)")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_and_folder_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = [path for path in FILE.findall(text) if "NAME" not in path and not path.startswith(("DIR/", "outputs/"))]
    folders = [ROOT, ROOT / "sweeper", (ROOT / page).parent, *(path for path in (ROOT / "sweeper").iterdir())]
    folders += [ROOT / "sweeper" / "metrics" / "cuda"]
    assert [path for path in named if not any((folder / path).exists() for folder in folders)] == []
    assert [link for link in LINK.findall(text) if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_room_and_module_at_the_top_is_named_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    top = [path for path in (ROOT / "sweeper").iterdir() if not path.name.startswith(("_", "."))]
    rooms = [f"`{path.name}/`" for path in top if path.is_dir() and (path / "__init__.py").exists()]
    modules = [f"`{path.name}`" for path in top if path.suffix == ".py"]
    assert [name for name in (*rooms, *modules) if name not in text] == []
    assert len(modules) <= 8


COOKBOOK = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
COMMANDS = [command for block in BLOCK.finditer(COOKBOOK) for command in commands(block["console"] or "")]


@pytest.mark.parametrize("command", [command for command in COMMANDS if " +grid=" in command])
def test_every_sweep_of_the_cookbook_can_be_planned(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    python, _, module, *arguments = shlex.split(command)
    assert (python, module) == ("python", "sweeper")
    monkeypatch.chdir(tmp_path)
    # planning reads a checkpoint's config: the default one would be downloaded
    own = [] if any(word.startswith("checkpoint=") for word in arguments) else ["checkpoint=tiny_llama"]
    assert dispatch([word for word in arguments if word != "-m"] + own + ["dry_run=true"]) == 0
    assert "cells" in capsys.readouterr().out


def test_every_block_of_the_cookbook_shows_what_it_printed() -> None:
    shown = [block["text"] or block["console"] for block in BLOCK.finditer(COOKBOOK)]
    assert len(shown) >= COOKBOOK.count("```console") > 0
    assert all(set(text.splitlines()) - {f"$ {command}" for command in COMMANDS} for text in shown)
