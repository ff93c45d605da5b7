from __future__ import annotations

import itertools
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.records.cell import Status
from sweeper.reports.page.chart import HEIGHT, Curve, chart
from sweeper.sinks.page import PageSink, page
from tests.sinks.records import SmallPlan
from tests.sinks.sweeps import many, measured, report_1, stored

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def in_browser(path: Path, profile: Path, fragment: str = "") -> str:
    """The document as a real browser has it after loading."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *QUIET, f"--user-data-dir={profile}", "--dump-dom", path.as_uri() + fragment]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("finished_now", [0, 2, 4])
def test_the_sink_writes_the_page_into_the_sweep(finished_now: int, tmp_path: Path) -> None:
    sweep = report_1(tmp_path)
    sweep = stored(tmp_path, [(measured("dddd9999"), []), *((r, sweep.modules(r.cell_id)) for r in sweep.records)])
    sink = PageSink()
    sink.sweep_started(SmallPlan(tmp_path, ()))  # type: ignore[arg-type]
    for record in sweep.records[:finished_now]:
        sink.cell_finished(record, sweep.modules(record.cell_id))
    sink.sweep_finished(sweep.records)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page(sweep)
    assert not list(tmp_path.glob(".index*"))


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    text = page(report_1(tmp_path))
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\(|@import|<script|<link", text)


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    hostile = "</style></title><script>alert(1)</script>\"'"
    text = page(report_1(tmp_path, inputs=hostile, checkpoint="<img src=x onerror=alert(2)>"))
    assert "<script" not in text
    assert "<img" not in text
    assert "&lt;script&gt;alert(1)" in text
    failed = measured("abc", status=Status.FAILED, reason=hostile, traceback=hostile)
    assert "<script" not in page(stored(tmp_path / "failed", [(failed, [])]))


def test_curves_that_coincide_are_drawn_once_and_name_all_their_cells(tmp_path: Path) -> None:
    text = page(report_1(tmp_path))
    titles = re.findall(r'<g class="curve ([^"]*)"><title>([^<]*)</title>', text)
    assert (
        titles
        == [
            ("grey", "aaaa1 dtype_at_load = cccc7 device_map"),
            ("c0", "aaaa3 cast_after_load = bbbb5 cast_before_move"),
        ]
        * 2
    )


def test_of_many_curves_the_worst_are_coloured_and_the_page_says_so(tmp_path: Path) -> None:
    text = page(many(tmp_path, 14))
    coloured = re.findall(r'<g class="curve c\d"><title>([^<]*)</title>', text)
    assert sorted(coloured[:6]) == [f"{i:04x} inputs_{i}" for i in range(8, 14)]
    assert text.count('<g class="curve grey">') == 2 * 8
    assert "The 6 curves with the largest difference are coloured" in text


def test_twelve_curves_are_told_apart_by_colour_and_dash(tmp_path: Path) -> None:
    styles = re.findall(r'<g class="curve ([^"]*)">', page(many(tmp_path, 12)))
    assert len(set(styles)) == 12
    assert "grey" not in styles


def test_a_sweep_without_layers_or_cells_is_a_page(tmp_path: Path) -> None:
    text = page(stored(tmp_path, [], not_run=2))
    assert "2 cells: 0 equal" in text
    assert "<svg" not in text


def test_zero_lies_on_the_floor_and_what_is_not_finite_is_a_gap() -> None:
    drawing = chart([Curve("one", "one", (0.0, 0.5, math.nan, 2.0), 0)], "max |Δ|")
    heights = [float(y) for y in re.findall(r'<circle cx="[^"]*" cy="([^"]*)"', drawing)]
    floor = float(re.search(r'class="floor"[^>]*y1="([^"]*)"', drawing)[1])  # type: ignore[index]
    assert heights[0] == floor
    assert floor > heights[1] > heights[2]
    assert drawing.count("<polyline") == 2
    assert drawing.count("not finite") == 1


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.lists(st.one_of(st.just(0.0), st.floats(1e-300, 1e300)), min_size=1, max_size=4), min_size=1, max_size=12
    )
)
def test_every_point_lies_in_the_drawing_and_no_two_names_touch(values: list[list[float]]) -> None:
    curves = [Curve(str(i), str(i), tuple(figures), i) for i, figures in enumerate(values)]
    drawing = chart(curves, "max |Δ|")
    heights = [float(y) for y in re.findall(r'cy="([^"]*)"', drawing)]
    assert len(heights) == sum(map(len, values))
    assert all(0 <= y <= HEIGHT for y in heights)
    names = sorted(float(y) for y in re.findall(r'class="label [^"]*" x="[^"]*" y="([^"]*)"', drawing))
    assert len(names) == len(curves)
    assert all(below - above > 14 for above, below in itertools.pairwise(names))
    assert all(0 < y <= HEIGHT for y in names)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_the_page_and_a_link_opens_its_cell(tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text(page(report_1(tmp_path, inputs="<script>document.title='hacked'</script>")))
    closed = in_browser(tmp_path / "index.html", tmp_path / "profile")
    assert "<title>load_strategy · sweeper</title>" in closed
    assert closed.count("<svg") == 2
    assert "<details open" not in closed
    opened = in_browser(tmp_path / "index.html", tmp_path / "profile", "#cell-bbbb55556666")
    assert re.search(r'<details open="">\s*<summary><code>bbbb5', opened)
    assert opened.count("<details open") == 1
