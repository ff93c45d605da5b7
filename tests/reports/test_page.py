"""The page as text: whole without scripts, escaped, bounded, and with nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from pathlib import Path

import pytest

from sweeper.records.cell import ModuleRecord, Status, TokenFigures
from sweeper.reports.answer import worst_first
from sweeper.reports.page import data
from sweeper.reports.page.page import headline, page, telling_axes
from tests.sinks.records import cell, measures, module
from tests.sinks.sweeps import enlarged, large, layered, many, measured, report_1, stored


def parts(text: str) -> tuple[str, list[str]]:
    """The page without its scripts, and the scripts."""
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL), re.findall(
        r"<script[^>]*>(.*?)</script>", text, flags=re.DOTALL
    )


def content(text: str) -> dict:
    found = re.search(r'<script type="application/json" id="page-data">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_it_needs_nothing_from_elsewhere_and_its_policy_allows_nothing_else(tmp_path: Path) -> None:
    text = page(report_1(tmp_path))
    still, _ = parts(text)
    assert not re.findall(r"(?:src|href)=\"(?!#)|url\(|@import|<link", still)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="([^"]*)"', text)[1])  # type: ignore[index]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy
    executed = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in executed]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    hostile = "</style></title></script><!--<script>alert(1)</script>\"'\u2028"
    sweep = report_1(tmp_path, inputs=hostile, checkpoint="<img src=x onerror=alert(2)>")
    text = page(sweep)
    still, scripts = parts(text)
    assert "<img" not in text
    assert "<script" not in still
    assert len(scripts) == len(parts(page(report_1(tmp_path / "tame")))[1])
    assert "&lt;script&gt;alert(1)" in still
    assert content(text)["cells"]["id"][0] == "aaaa33334444"
    failed = measured("abc", status=Status.FAILED, reason=hostile, traceback=hostile)
    assert "<script" not in parts(page(stored(tmp_path / "failed", [(failed, [])])))[0]


def test_what_stands_in_a_script_cannot_end_it() -> None:
    written = data.as_script({"a": "</script><!-- \u2028 & <b>"})
    assert "<" not in written
    assert "\u2028" not in written
    assert json.loads(written) == {"a": "</script><!-- \u2028 & <b>"}


def test_curves_that_coincide_are_drawn_once_and_name_all_their_cells(tmp_path: Path) -> None:
    text = page(report_1(tmp_path))
    titles = set(re.findall(r'<g class="curve ([^"]*)"><title>([^<]*)</title>', text))
    assert titles == {
        ("grey", "aaaa1 dtype_at_load = cccc7 device_map"),
        ("c0", "aaaa3 cast_after_load = bbbb5 cast_before_move"),
    }
    assert [curve["labels"] for curve in content(text)["curves"]] == [
        ["aaaa3 cast_after_load", "bbbb5 cast_before_move"],
        ["aaaa1 dtype_at_load", "cccc7 device_map"],
    ]


def test_labels_are_whole(tmp_path: Path) -> None:
    long = "an_axis_value_that_is_much_longer_than_a_chart_has_room_for_and_decides_at_its_end_" + "x" * 40
    still, _ = parts(page(report_1(tmp_path, inputs=long)))
    label = html.unescape(re.search(r'<ul class="key".*?</ul>', still, re.DOTALL)[0])  # type: ignore[index]
    assert "…" not in label
    assert "aaaa3 cast_after_load" in label


def test_many_curves_have_the_colour_of_their_verdicts(tmp_path: Path) -> None:
    assert {curve["style"] for curve in content(page(many(tmp_path / "few", 12)))["curves"]} == {*range(12)}
    text = page(many(tmp_path / "more", 14))
    assert {(curve["style"], curve["end"]) for curve in content(text)["curves"]} == {(None, "not judged")}
    assert text.count('<g class="curve end-not-judged">') == 2 * 14
    assert "The colour is that of the verdict" in text


def test_the_worst_come_first_and_what_could_not_run_last(tmp_path: Path) -> None:
    cells = [
        (measured("aaaa", first_divergence=None), []),
        (measured("bbbb", first_divergence="m", output=measures(0.1)), []),
        (measured("cccc", first_divergence="m", output=measures(math.nan)), []),
        (measured("dddd", first_divergence="m", output=measures(0.4)), []),
        (measured("eeee", status=Status.UNSUPPORTED, reason="no GPU", output=None), []),
        (measured("ffff", status=Status.FAILED, reason="it broke", output=None), []),
    ]
    found = content(page(stored(tmp_path, cells)))["cells"]
    assert found["id"] == ["ffff", "cccc", "dddd", "bbbb", "aaaa", "eeee"]
    assert found["rel_l2"][:3] == [None, "NaN", pytest.approx(0.4 / math.sqrt(8), rel=1e-3)]


def test_the_grid_opens_on_the_axes_that_part_right_from_wrong(tmp_path: Path) -> None:
    cells = []
    for i, (dtype, layout, cache) in enumerate(
        (dtype, layout, cache)
        for dtype in ("float16", "bfloat16")
        for layout in ("padded", "packed")
        for cache in (True, False)
    ):
        wrong = layout == "packed" and cache
        axes = cell().axes() | {"dtype": dtype, "layout": layout, "use_cache": cache}
        status = {"status": Status.FAILED, "reason": "broke", "output": None} if wrong else {}
        cells.append((measured(f"{i:04x}", axes=axes, **status), []))
    sweep = stored(tmp_path, cells)
    assert telling_axes(sweep, sweep.records) == ("layout", "use_cache")
    assert headline(sweep.records) == "2 of 8 cells need a look"


def test_a_cells_maps_have_its_modules_and_its_tokens(tmp_path: Path) -> None:
    tokens = TokenFigures(text=(1, 1, 0), position=(0, 1, 0), max_abs=(1.0, 2.0, 3.0), rel_l2=(0.123456, math.inf, 0.0))
    modules = [row.model_copy(update={"tokens": tokens}) if row.kind == "layer" else row for row in layered(0.25)]
    choices = {"inputs": {"texts": ["one", "<b>two</b>"]}}
    sweep = stored(tmp_path, [(measured("aaaa", first_divergence="m", choices=choices), modules)])
    maps = content(page(sweep))["maps"]
    assert maps["of"] == [["aaaa", 0]]
    (one,) = maps["maps"]
    assert one["layers"] == [0, 1]
    assert one["kinds"][0] == "input_layernorm"
    assert one["kinds"][-1] == "layer"
    assert one["max_abs"][one["kinds"].index("self_attn.o_proj")] == [0.25, 0.25]
    assert one["max_abs"][0] == [0.0, 0.25]
    assert one["texts"] == [
        {"text": 1, "words": "<b>two</b>", "layers": [0, 1], "rel_l2": [[0.123, "Infinity"]] * 2},
        {"text": 0, "words": "one", "layers": [0, 1], "rel_l2": [[0.0]] * 2},
    ]


def test_layers_of_encoder_and_decoder_are_told_apart(tmp_path: Path) -> None:
    tokens = TokenFigures(text=(0,), position=(0,), max_abs=(1.0,), rel_l2=(1.0,))
    modules = [
        module(i, f"model.{stack}.layers.0.{kind}".removesuffix(".layer"), 0, kind, difference)
        for i, (stack, kind, difference) in enumerate(
            (stack, kind, difference)
            for stack, difference in (("encoder", 0.25), ("decoder", 0.5))
            for kind in ("fc1", "layer")
        )
    ]
    modules[1] = modules[1].model_copy(update={"tokens": tokens})
    one = data.cell_maps(measured(), modules, {modules[1].name: tokens})
    assert one["kinds"] == ["encoder fc1", "encoder layer", "decoder fc1", "decoder layer"]
    assert one["max_abs"] == [[0.25], [0.25], [0.5], [0.5]]
    assert one["texts"][0]["layers"] == ["encoder 0"]


def test_cells_that_have_the_same_figures_and_no_others_have_the_same_maps() -> None:
    def with_tokens(rel_l2: float, difference: float = 0.25) -> tuple[list[ModuleRecord], dict[str, TokenFigures]]:
        tokens = TokenFigures(text=(0,), position=(0,), max_abs=(1.0,), rel_l2=(rel_l2,))
        modules = layered(difference)
        return modules, {row.name: tokens for row in modules if row.kind == "layer"}

    first, second = (measured(cell_id, choices={"inputs": {"texts": ["one"]}}) for cell_id in ("aaaa", "bbbb"))
    of = data.CellMaps().of
    shared = of(first, *with_tokens(1.0))
    assert of(second, *with_tokens(1.0)) is shared
    others = [
        of(second, *with_tokens(2.0)),
        of(second, *with_tokens(1.0, 0.5)),
        of(second, with_tokens(1.0)[0], {}),
        of(second, [row for row in layered(0.25) if row.kind != "self_attn.v_proj"], with_tokens(1.0)[1]),
        of(measured("cccc", choices={"inputs": {"texts": ["two"]}}), *with_tokens(1.0)),
    ]
    assert len({json.dumps(one) for one in [shared, *others]}) == 6


def test_fifty_cells_of_thirty_layers_are_less_than_two_megabytes(tmp_path: Path) -> None:
    assert len(page(large(tmp_path, 50))) < 2_000_000


def test_tokens_that_do_not_fit_are_said_to_be_left_out(tmp_path: Path) -> None:
    maps = content(page(large(tmp_path, 50)))["maps"]
    assert len(maps["of"]) == 50
    assert "texts" in maps["maps"][0]
    assert "texts" not in maps["maps"][-1]
    assert maps["maps"][-1]["texts_left_out"] is True


def test_a_row_links_to_its_cell_where_that_is_there_also_where_one_was_asked_for(tmp_path: Path) -> None:
    sweep = many(tmp_path, data.MOST_IN_FULL + 5)
    asked = worst_first(sweep.records)[-1].cell_id
    for full, count in (("", data.MOST_IN_FULL), (asked, data.MOST_IN_FULL + 1)):
        still, _ = parts(page(sweep, full=full))
        links, cells = re.findall(r'href="#cell-([^"]*)"', still), re.findall(r'id="cell-([^"]*)"', still)
        assert len(links) == count
        assert sorted(links) == sorted(cells)


def test_five_thousand_cells_are_less_than_three_megabytes_and_it_says_what_is_left_out(tmp_path: Path) -> None:
    sweep = enlarged(large(tmp_path, 70), 5000)
    text = page(sweep)
    assert len(text) < 3_000_000
    assert sweep.read_modules == data.MOST_IN_FULL
    assert "The 60 worst cells in full" in text
    assert f"python -m sweeper report {tmp_path} --cell ID" in text
    assert len(content(text)["cells"]["id"]) == 5000
    assert text.count('<tr>\n<th scope="row" class="id">') == 200


def test_a_sweep_without_layers_or_cells_is_a_page(tmp_path: Path) -> None:
    text = page(stored(tmp_path, [], not_run=2))
    assert "No cell has run" in text
    assert "<svg" not in text
    assert "<script" not in text
