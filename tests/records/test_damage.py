"""A cell whose files are not what was written is left out by every command, with one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sweeper.cli.main import dispatch
from sweeper.errors import DamagedError
from sweeper.published.page import _causes
from sweeper.records.frames import open_sweep
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep
from sweeper.records.verdict import ExplanationRecord
from tests.damage import ANY_FILE, JSON_FILE, WHOLE_FOLDER
from tests.sinks.sweeps import report_1

DAMAGED = "cccc77778888"
OF_A_CELL = {
    f"{file} {name}": (file, damage)
    for file, kinds in (
        ("cell.json", ANY_FILE | JSON_FILE),
        ("modules.parquet", ANY_FILE),
        ("", WHOLE_FOLDER),
        ("SHA256SUMS", {name: ANY_FILE[name] for name in ("empty", "cut in half", "binary", "a folder")}),
    )
    for name, damage in kinds.items()
}
COMMANDS = {
    "report": ("report", "{sweep}"),
    "markdown": ("report", "{sweep}", "--markdown", "{out}"),
    "page": ("report", "{sweep}", "--html", "{out}"),
    "junit": ("report", "{sweep}", "--junit", "{out}"),
    "json": ("report", "{sweep}", "--json", "{out}"),
    "csv": ("report", "{sweep}", "--csv", "{out}"),
    "whole cell": ("report", "{sweep}", "--cell", "aaaa1"),
    "damaged cell": ("report", "{sweep}", "--cell", "cccc"),
    "explain": ("explain", "{sweep}", "cccc"),
    "published": ("published", "{out}", "{sweep}"),
    "compare": ("compare", "{sweep}", "{sweep}"),
    "verify": ("verify", "{sweep}"),
}


@pytest.mark.parametrize(("file", "damage"), OF_A_CELL.values(), ids=OF_A_CELL)
def test_a_damaged_cell_is_left_out_with_one_line(
    tmp_path: Path, file: str, damage: Callable[[Path], object], recwarn: pytest.WarningsRecorder
) -> None:
    folder = report_1(tmp_path).folder / "cells" / DAMAGED
    damage(folder / file if file else folder)
    sweep = Sweep.read(tmp_path)
    assert [record.cell_id for record in sweep.records] == ["aaaa11112222", "aaaa33334444", "bbbb55556666"]
    (line,) = sweep.damaged
    assert line.startswith(f"{folder}/{file}" if file != "SHA256SUMS" else str(folder))
    assert "\n" not in line
    assert len(open_sweep(tmp_path).cells) == 3
    assert [str(warning.message) for warning in recwarn] == [line]
    with pytest.raises(DamagedError):
        Store(tmp_path).finished(DAMAGED)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize("file", ["cell.json", "modules.parquet"])
def test_commands_name_the_file_and_show_the_rest(
    tmp_path: Path, file: str, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = report_1(tmp_path / "sweep").folder
    damaged = folder / "cells" / DAMAGED / file
    ANY_FILE["cut in half"](damaged)
    out = tmp_path / "out"
    code = dispatch([word.format(sweep=folder, out=out) for word in command])
    shown = capsys.readouterr()
    assert code == {"explain": 2, "published": 2, "verify": 1}.get(command[0], 2 * (command[-1] == "cccc"))
    assert command[0] == "published" or str(damaged) in shown.err + shown.out
    if {"--html", "--markdown"} & {*command} or command == COMMANDS["report"]:
        told = shown.out + (out.read_text() if out.exists() else "")
        assert "1 with files that are not what was written" in told
        assert "not run yet" not in told
    if "--json" in command:
        assert str(damaged) in json.loads(out.read_text())["damaged"][0]


def test_the_list_of_the_sweep_is_damaged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, damage in (ANY_FILE | JSON_FILE).items():
        if name in ("without its last byte", "longer", "one bit", "a field too many"):
            continue  # JSON all the same: nothing keeps a hash of a list that can be made again
        folder = report_1(tmp_path / name).folder
        damage(folder / "sweep.json")
        for command in COMMANDS.values():
            assert dispatch([word.format(sweep=folder, out=tmp_path / "out") for word in command]) == 2, name
            assert capsys.readouterr().err.count("\n") == 1


def test_a_cell_of_before_there_were_sums_is_read_whole(tmp_path: Path) -> None:
    folder = report_1(tmp_path).folder / "cells" / DAMAGED
    (folder / "SHA256SUMS").unlink()
    assert not Sweep.read(tmp_path).damaged
    ANY_FILE["zeros"](folder / "modules.parquet")
    assert str(folder / "modules.parquet") in Sweep.read(tmp_path).damaged[0]


def test_the_sums_are_those_of_sha256sum(tmp_path: Path) -> None:
    import shutil
    import subprocess

    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    for folder in (report_1(tmp_path).folder / "cells").iterdir():
        subprocess.run(["sha256sum", "--check", "--strict", "--quiet", "SHA256SUMS"], cwd=folder, check=True)


@pytest.mark.parametrize("name", ["empty", "cut in half", "binary", "newer", "a folder", "a link to nowhere"])
def test_an_explanation_that_cannot_be_read_is_named_on_the_page(tmp_path: Path, name: str) -> None:
    sweep = report_1(tmp_path)
    found = ExplanationRecord(
        cell_id=DAMAGED,
        kind="policy",
        reason="rounded",
        cause="the rotary table",
        closed_bitwise=True,
        put_back="dtype_at_load",
        since=None,
        tried=(),
        environment={},
    )
    path = Store(sweep.folder).write_explanation(found)
    assert "the rotary table" in "".join(_causes([sweep]))
    (ANY_FILE | JSON_FILE)[name](path)
    (line,) = (line for line in _causes([sweep]) if "typed again" in line)
    assert f"explain/{DAMAGED}.json" in line
