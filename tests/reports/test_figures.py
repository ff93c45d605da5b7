"""Figures as files, drawn by the browser that is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from sweeper.cli.main import dispatch
from sweeper.errors import ConfigError
from sweeper.reports.figures import VARIABLE, browser, write_figures
from tests.sinks.sweeps import report_1


@pytest.mark.skipif(
    browser() is None, reason=f"no Chromium or Chrome on this machine: install it, or name it in {VARIABLE}"
)
def test_they_are_svg_and_png_with_a_legend(tmp_path: Path) -> None:
    written = [*write_figures(report_1(tmp_path), tmp_path / "figures", "bbbb55556666")]
    names = ("curves", "modules")  # one axis varies: no grid
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("svg", "png")]
    for path in written:
        if path.suffix == ".svg":
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
        else:
            assert path.read_bytes().startswith(b"\x89PNG")
    words = re.findall(r">([^<>]+)</text>", (tmp_path / "figures" / "curves.svg").read_text(encoding="utf-8"))
    assert "aaaa3 cast_after_load = bbbb5 cast_before_move" in words


def test_the_command_says_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, "no-such-browser")
    report_1(tmp_path)
    assert dispatch(["report", str(tmp_path), "--figures", str(tmp_path / "figures")]) == 2
    assert "figures are drawn by Chromium or Chrome" in capsys.readouterr().err


def test_without_a_browser_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "no-such-browser")
    with pytest.raises(ConfigError, match=f"Chromium or Chrome.*{VARIABLE}"):
        next(iter(write_figures(report_1(tmp_path), tmp_path)))


def test_a_browser_that_does_not_draw_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv(VARIABLE, "true")
    with pytest.raises(ConfigError, match="did not draw the figures"):
        next(iter(write_figures(report_1(tmp_path), tmp_path)))
