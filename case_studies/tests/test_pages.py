"""The pages of both reports, from real sweeps of tiny models by the commands that the pages show."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from case_studies.fixups import FIXUPS_FILE
from case_studies.measure_fixups import measure_fixups
from case_studies.report_2_page import write_report_2
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.published.page import write_page
from sweeper.records.cell import CellRecord
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep
from sweeper.records.verdict import ExplanationRecord
from sweeper.reports.cells_table import number
from sweeper.sweep import run as app
from tests.composing import request_of

SHARED = ("inputs=report_2", "attention=eager", "wandb.mode=disabled", "verdict=false")
CONF = Path(__file__).parents[1] / "conf"
REPORT = "reported=packing_flash_attention_bf16"


def swept(folder: Path, *arguments: str) -> Sweep:
    request = request_of(f"output_dir={folder}", *SHARED, *arguments, user_conf=CONF)
    assert app.run(request) == 0
    return Sweep.read(make_plan(request, environment("cpu")).folder)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> list[Sweep]:
    folder = tmp_path_factory.mktemp("report_2")
    own = "checkpoint=tiny_qwen3", "dtype=bfloat16,float32", "numerics=default"
    fixups = swept(folder, "+grid=report_2_fixups", *own, "numerics=default,bf16_reduction_off", REPORT)
    explicit = swept(folder, "+grid=padding_vs_packing", *own, "layout=packed", "positions=explicit")
    return [fixups, explicit, swept(folder, "+grid=report_2_pooling", "checkpoint=tiny_qwen3")]


@pytest.fixture(scope="module")
def pair(sweeps: list[Sweep]) -> CellRecord:
    """The report's own pair, under eager."""
    axes = {"dtype": "bfloat16", "use_cache": True, "numerics": "default"}
    return next(record for record in sweeps[0].records if axes.items() <= record.axes.items())


@pytest.fixture(scope="module")
def page(sweeps: list[Sweep], pair: CellRecord, tmp_path_factory: pytest.TempPathFactory) -> str:
    fixups = measure_fixups(pair)
    (sweeps[0].folder / FIXUPS_FILE).write_text(fixups.model_dump_json())
    found = ExplanationRecord(
        cell_id=pair.cell_id,
        kind="semantic",
        reason="",
        cause="the call | differs",
        closed_bitwise=True,
        put_back=None,
        since=None,
        tried=(),
        environment={},
    )
    Store(sweeps[0].folder).write_explanation(found)
    path = tmp_path_factory.mktemp("docs") / "report_2.md"
    written = write_report_2(path, [sweep.folder for sweep in sweeps])
    beside = ("numbers", "cells", "fixups_measured", "second_text")  # this report has no table over layers
    assert written == [path, *(path.with_name(f"report_2_{name}.csv") for name in beside)]
    return path.read_text()


def row(page: str, *start: str) -> list[str]:
    """The cells of the one row that starts with these."""
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    (found,) = [cells for cells in rows if tuple(cells[: len(start)]) == start]
    return found[len(start) :]


def test_eval_mode_changes_nothing_without_dropout_and_alignment_does(pair: CellRecord) -> None:
    measured = {one.fixup: one for one in measure_fixups(pair).fixups}
    assert pair.output is not None
    assert measured["eval_mode"].without == measured["eval_mode"].with_it
    assert measured["eval_mode"].with_it.max_abs == pair.output.max_abs
    assert measured["eval_mode"].with_it.equal_fraction == pair.output.equal_fraction
    assert measured["aligned_slices"].without.mean_abs > measured["aligned_slices"].with_it.mean_abs


def test_each_fixup_shows_what_its_own_cell_measured(page: str, sweeps: list[Sweep], pair: CellRecord) -> None:
    assert pair.output is not None
    step = "Answer, What I would change first, "
    assert row(page, "none")[1:3] == ["eager", number(pair.output.max_abs)]
    off = row(page, "no reduced-precision reduction in bfloat16", f"{step}5", "eager")
    assert off[0] == number(pair.output.max_abs)  # a flag of GPUs
    assert row(page, "without eval mode", f"{step}1", "eager")[0] == number(pair.output.max_abs)
    assert row(page, "without aligned slices", f"{step}2", "eager")[0] != number(pair.output.max_abs)
    embeddings = row(page, "pooled and normalised embeddings", f"{step}3", "eager")
    assert embeddings[0] == number(max(text.embedding_max_abs for text in pair.texts))
    leaking = float(row(page, "float32 and eager on both sides", f"{step}4", "eager")[0])
    tight = float(row(page, "float32 and eager, no cache in the packed call", "", "eager")[0])
    assert tight < 1e-4 < leaking
    assert row(page, "explicit positions, and no cache in the packed call", "", "eager") == ["0", "0", "1", "1"]
    assert row(page, "all three flags", f"{step}5", "eager") == ["–"] * 4  # no such cell in these sweeps


def test_the_second_text_is_equal_with_explicit_positions_and_leaks_with_the_cache(page: str) -> None:
    implicit, explicit, leaking = row(page, "bfloat16", "eager")
    assert explicit == "0 / 1 / 1"
    assert 0 < float(implicit.split(" / ")[0]) < float(leaking.split(" / ")[0])


def test_pooling_by_count_is_wrong_for_the_short_text_under_left_padding(page: str) -> None:
    cosines = {
        (layout, pooling): [float(value) for value in row(page, f"padded_{layout}", pooling)[0].split(", ")]
        for layout in ("left", "right")
        for pooling in ("last_token", "last_token_by_count")
    }
    wrong = cosines.pop(("left", "last_token_by_count"))
    assert wrong[0] > 0.99 > wrong[1]
    assert all(value > 0.99 for values in cosines.values() for value in values)


def test_the_page_names_its_command_its_sweeps_the_cause_and_every_number(page: str, sweeps: list[Sweep]) -> None:
    assert "python -m case_studies.report_2_page " in page
    assert all(sweep.command in page for sweep in sweeps)
    assert page.count(f"python -m sweeper --config-dir {os.path.relpath(CONF)} ") == len(sweeps)
    assert "the call \\| differs" in page
    assert "260 numbers: " in page
    assert "the tokenizer of another checkpoint made other ids; give inputs=report_2_ids" in page


def test_the_layers_of_report_1_are_drawn_beside_the_measured_ones(tmp_path: Path) -> None:
    strategies = "+grid=load_strategy", "load_strategy=cast_after_load", "reported=logit_divergence_bf16"
    sweep = swept(tmp_path, *strategies, "checkpoint=tiny_llama", "inputs=report_1")
    page, numbers, cells, picture = write_page(tmp_path / "report_1.md", [sweep.folder])
    assert all(f"]({path.name})" in page.read_text() for path in (numbers, cells, picture))
    drawing = ElementTree.parse(picture).getroot()
    lines = drawing.findall(".//{http://www.w3.org/2000/svg}polyline")
    points = [len(line.attrib["points"].split()) for line in lines]
    assert points == [30, 3, 30, 3]  # published and measured, mean and max: tiny_llama has three layers
    assert "the cell has no module.mean_abs at kind layer, layer 29" in page.read_text()
