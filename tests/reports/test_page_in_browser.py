"""The page in a browser: what moves, on a desk and on a phone, in the dark and without scripts."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts.page_pictures import IMAGES
from sweeper.records.cell import TokenFigures
from sweeper.reports.page.page import page
from tests.sinks.records import cell, measures
from tests.sinks.sweeps import layered, measured, report_1, stored

PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six cells of two axes; packed cells differ, by most in bfloat16, and one layer's attention is an outlier."""
    folder = tmp_path_factory.mktemp("page")
    cells = []
    for i, dtype in enumerate(("float32", "bfloat16", "float16")):
        for layout in ("padded", "packed"):
            difference = 0.1 * (i + 1) if layout == "packed" else 0.0
            tokens = TokenFigures(text=(1, 1), position=(0, 1), max_abs=(0.1, difference), rel_l2=(0.1, difference))
            modules = [
                row.model_copy(update={"tokens": tokens}) if difference and row.kind == "layer" else row
                for row in layered(difference, later=0.5 * bool(difference), layers=4)
            ]
            modules = [
                row.model_copy(update={"measures": measures(20.0)})
                if difference and (row.layer, row.kind) == (2, "self_attn.o_proj")
                else row
                for row in modules
            ]
            made = measured(
                f"{layout[:4]}{i}aaaa",
                axes=cell().axes() | {"dtype": dtype, "layout": layout},
                output=measures(difference),
                first_divergence="model.rotary_emb" if difference else None,
                choices={"inputs": {"texts": ["the first", "the <b>second</b>"]}},
            )
            cells.append((made, modules))
    (folder / "index.html").write_text(page(stored(folder, cells)), encoding="utf-8")
    return folder / "index.html"


@pytest.fixture
def opened(chromium: Any, path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page in a window of its own; any error of its scripts fails the test."""
    context = chromium.new_context(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    context.set_default_timeout(60_000)  # two processes share CI's cores
    window = context.new_page()
    errors: list[str] = []
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("console", lambda said: errors.append(said.text) if said.type in ("error", "warning") else None)
    window.goto(path.as_uri())
    if getattr(request, "param", {}).get("java_script_enabled", True):
        window.wait_for_selector("html[data-ready] #tokens svg")
    yield window
    context.close()
    assert errors == []


def soon(holds: Callable[[], bool]) -> None:
    """Waits for what a figure shows: it is drawn a moment after the call that changed it."""
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline, "does not come to hold"
        time.sleep(0.05)


def ids(window: Any) -> list[str]:
    return window.locator("#cells-body th").all_inner_texts()


def test_cells_are_sorted_by_any_column_and_back(opened: Any) -> None:
    assert ids(opened)[:3] == ["pack2", "pack1", "pack0"]  # the worst first
    heading = opened.locator("#cells-table th", has_text="rel. L2")
    heading.get_by_role("button").click()
    assert heading.get_attribute("aria-sort") == "descending"
    assert ids(opened)[:3] == ["pack2", "pack1", "pack0"]
    heading.get_by_role("button").press("Enter")
    assert heading.get_attribute("aria-sort") == "ascending"
    assert ids(opened)[-3:] == ["pack0", "pack1", "pack2"]
    opened.locator("#cells-table th", has_text="dtype").get_by_role("button").click()
    assert opened.locator("#cells-body tr").first.inner_text().split("\t").count("bfloat16") == 1


def test_cells_are_filtered_by_words_and_by_verdict(opened: Any) -> None:
    opened.fill("#cells-words", "packed bfloat")
    assert ids(opened) == ["pack1"]
    assert opened.inner_text("#cells-count") == "1 of 6 cells"
    opened.get_by_role("button", name="show all").click()
    assert len(ids(opened)) == 6
    chip = opened.locator("#cells-ends button", has_text="identical")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "true"
    assert sorted(ids(opened)) == ["padd0", "padd1", "padd2"]


def test_the_figures_in_the_table_are_those_without_scripts(opened: Any, chromium: Any, path: Path) -> None:
    context = chromium.new_context(java_script_enabled=False)
    still = context.new_page()
    still.goto(path.as_uri())
    rows = [window.locator("#cells-body tr").all_inner_texts() for window in (opened, still)]
    context.close()
    assert rows[0] == rows[1]


def test_curves_are_toggled_in_the_legend(opened: Any) -> None:
    curves = opened.locator("#curves .mark-line path")
    before = curves.count()
    toggle = opened.locator("#curves-key button").first
    toggle.click()
    assert toggle.get_attribute("aria-pressed") == "false"
    soon(lambda: curves.count() == before - 1)
    toggle.press("Enter")
    soon(lambda: curves.count() == before)
    opened.click("#curves-none")
    soon(lambda: curves.count() == 0)
    opened.click("#curves-every")
    soon(lambda: curves.count() == before)
    opened.select_option("#curves-figure", "max_abs")
    assert "layer 3: 1.8, pack2" in opened.inner_text("section[aria-labelledby=layers-heading] .readout")


def test_the_grid_is_a_map_over_any_two_axes_and_leads_to_its_cells(opened: Any) -> None:
    labels = opened.locator("#grid .mark-text text")
    assert opened.input_value("#grid-x") == "dtype"
    assert opened.input_value("#grid-y") == "layout"
    soon(lambda: labels.all_text_contents().count("not judged") == 3)
    opened.select_option("#grid-figure", "max_abs")
    soon(lambda: {"0", "0.1", "0.2", "0.3"} <= {*labels.all_text_contents()})
    opened.select_option("#grid-x", "layout")
    opened.select_option("#grid-y", "dtype")
    soon(lambda: {"padded", "float32"} <= {*opened.locator("#grid .role-axis-label text").all_text_contents()})
    opened.locator("#grid .mark-rect.role-mark path").first.click(force=True)
    soon(lambda: len(ids(opened)) == 1)
    assert "with layout=" in opened.inner_text("#cells-count")


def test_an_outlier_at_one_layers_attention_is_the_darkest_place(opened: Any) -> None:
    places = opened.evaluate(
        """[...document.querySelectorAll("#modules .mark-rect.role-mark path")]
        .map((place) => [place.__data__.datum.said, place.getAttribute("fill")])"""
    )
    fills = dict(places)
    outlier = next(fill for said, fill in fills.items() if said.startswith("layer 2, self_attn.o_proj"))
    assert list(fills.values()).count(outlier) == 1
    assert (
        "largest: layer 2, self_attn.o_proj, rel. L2"
        in opened.locator("#modules").locator("xpath=ancestor::figure").locator(".readout").inner_text()
    )


def test_tokens_are_those_of_a_text_and_the_text_is_text(opened: Any) -> None:
    assert opened.inner_text("#tokens-words") == "the <b>second</b>"
    soon(lambda: opened.locator("#tokens .mark-rect.role-mark path").count() == 4 * 2)


def test_another_cell_is_chosen(opened: Any) -> None:
    assert opened.locator("#inside-cell option").count() == 3  # the others are equal
    before = opened.inner_text("section[aria-labelledby=inside-heading] .readout >> nth=1")
    opened.select_option("#inside-cell", index=2)
    assert opened.inner_text("section[aria-labelledby=inside-heading] .readout >> nth=1") != before


def test_pointing_at_a_place_says_what_it_is(opened: Any) -> None:
    opened.locator("#modules").scroll_into_view_if_needed()
    opened.locator("#modules .mark-rect.role-mark path").last.hover(force=True)
    soon(lambda: opened.locator(".tip").inner_text().startswith("layer "))


def test_the_arrow_keys_go_through_a_figure(opened: Any) -> None:
    figure = opened.locator("figure", has=opened.locator("#modules"))
    opened.focus("#modules")
    opened.keyboard.press("ArrowRight")
    first = figure.locator(".readout").inner_text()
    opened.keyboard.press("ArrowRight")
    assert first.startswith("layer 0, ")
    assert figure.locator(".readout").inner_text().startswith("layer 1, ")


def test_every_figure_is_captioned_and_every_control_named(opened: Any) -> None:
    for name in ("grid", "curves", "modules", "tokens"):
        assert opened.locator(f"#{name}").get_attribute("aria-label")
    unnamed = opened.evaluate(
        """[...document.querySelectorAll("input,select")].filter((one) => !one.labels.length).map((one) => one.id)"""
    )
    assert unnamed == []
    assert opened.locator("table:not([aria-label]):not(:has(caption))").count() == 0


def test_a_link_opens_its_cell(opened: Any) -> None:
    opened.locator("#cells-body th a").first.click()
    soon(lambda: opened.locator("details[open] #cell-pack2aaaa").count() == 1)
    assert opened.locator("details[open]").count() == 1


@pytest.mark.parametrize("opened", [PHONE], indirect=True)
def test_a_phone_shows_verdict_and_figure_and_nothing_sticks_out(opened: Any) -> None:
    assert opened.evaluate("document.documentElement.scrollWidth") == 390
    row = opened.locator("#cells-body tr").first
    for said in ("not judged", "rel. L2", "rotary_emb"):
        box = (
            row.get_by_text(said).bounding_box() if said != "rel. L2" else row.locator("td.figure").first.bounding_box()
        )
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 390
    answer = opened.locator(".answer li").first.bounding_box()
    assert answer["y"] < 844 / 2  # the answer is what is seen first


@pytest.mark.parametrize("opened", [{"color_scheme": "dark"}], indirect=True)
def test_the_dark_is_dark_and_follows_the_system(opened: Any) -> None:
    background = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('#curves .mark-line path').getAttribute('stroke')"
    dark = opened.evaluate(background), opened.evaluate(line)
    opened.emulate_media(color_scheme="light")
    opened.locator(f'#curves .mark-line path:not([stroke="{dark[1]}"])').first.wait_for(state="attached")
    assert dark[0] == "rgb(18, 22, 30)"
    assert opened.evaluate(background) == "rgb(255, 255, 255)"


@pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_table_curves_and_cells_are_there(opened: Any) -> None:
    assert opened.locator("#cells-body tr").count() == 6
    assert opened.locator(".still svg:visible").count() == 2
    assert opened.locator("#grid").is_hidden()
    assert opened.locator("#cells-words").is_hidden()
    assert opened.locator("details").count() == 6


def test_hostile_names_stay_text_in_the_browser(chromium: Any, tmp_path: Path) -> None:
    hostile = '</script><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
    sweep = report_1(tmp_path, inputs=hostile, dtype=hostile)
    (tmp_path / "index.html").write_text(page(sweep), encoding="utf-8")
    window = chromium.new_page()
    window.goto((tmp_path / "index.html").as_uri())
    window.wait_for_selector("#modules svg", state="attached")
    assert window.evaluate("window.hacked") is None
    assert window.locator("img").count() == 0
    assert hostile in window.locator("section[aria-labelledby=cells-heading]").inner_text()
    window.close()


def test_the_pictures_of_the_documents_are_made(chromium: Any, path: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.page_pictures", path.parent, "--to", tmp_path]
    subprocess.run(command, check=True, timeout=300, cwd=Path(__file__).parents[2])
    assert {file.stem for file in tmp_path.glob("*.png")} == {file.stem for file in IMAGES.glob("page*.png")}
