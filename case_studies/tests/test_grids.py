"""The grids of both reports have the cells that their figures and fix-ups speak of, and read what was published."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from case_studies.fixups import load_fixups
from sweeper.config import parse
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.published.lookup import has
from sweeper.published.publication import Publication
from tests.composing import request_of

CONF = Path(__file__).parents[1] / "conf"


@pytest.mark.parametrize("path", sorted((CONF / "grid").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_grid_is_planned_with_the_cells_that_its_comment_promises(path: Path) -> None:
    request = request_of(f"+grid={path.stem}", "checkpoint=tiny_llama", user_conf=CONF)
    comment = path.read_text().split("reference:")[0]
    assert [int(count) for count in re.findall(r"(\d+) cells", comment)] == [len(request.cells)]
    assert f"--config-dir case_studies/conf +grid={path.stem}" in comment


def test_every_option_is_valid_and_named_after_its_file() -> None:
    for group in ("inputs", "numerics"):
        names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
        request = request_of(f"{group}={','.join(names)}", user_conf=CONF)
        assert [getattr(cell, group).name for cell in request.cells] == names


def test_the_token_ids_are_what_was_published() -> None:
    # The packed row of report 2 as printed, with the position ids that tell where the second text starts.
    # fmt: off
    packed = [
        6023, 1246, 525, 498, 419, 374, 1128, 773, 429, 374, 429, 1128, 374, 1414, 374, 1052, 894, 1616, 311, 653, 419,
        151643, 15588, 1246, 646, 600, 1492, 498, 3351, 151643,
    ]
    # fmt: on
    first, second = (cell.inputs for cell in request_of("inputs=report_1_ids,report_2_ids", user_conf=CONF).cells)
    assert first.token_ids == ((22007, 6463, 314),)
    assert second.token_ids is not None
    assert [len(ids) for ids in second.token_ids] == [22, 8]
    assert [token for ids in second.token_ids for token in ids] == packed


def planned(*arguments: str) -> tuple[Publication, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """The report that the command line names, and the axes of every cell of the grid with those of its reference."""
    request = request_of(*arguments, user_conf=CONF)
    assert request.reported is not None
    cells = make_plan(request, environment("cpu")).cells
    return parse(Publication, request.reported), [(cell.cell.axes(), cell.reference.axes()) for cell in cells]


@pytest.mark.parametrize(
    "arguments",
    [
        ("+grid=load_strategy", "reported=logit_divergence_bf16"),
        ("+grid=padding_vs_packing", "reported=packing_flash_attention_bf16"),
    ],
)
def test_the_grid_of_a_report_has_the_cells_of_all_its_figures(arguments: tuple[str, ...]) -> None:
    report, cells = planned(*arguments)
    for figure in report.figures:
        reference = report.reference_of(figure) or {}
        fitting = [pair for pair in cells if has(pair[0], report.cell_of(figure)) and has(pair[1], reference)]
        assert fitting, figure.id
    assert {pair[0]["inputs"] for pair in cells} <= set(report.inputs)


def test_every_fixup_of_report_2_is_a_cell_of_its_grids_or_measured_apart() -> None:
    own = "reported=packing_flash_attention_bf16", "checkpoint=qwen3_0_6b_geometry"  # whose ids they are
    _, cells = planned("+grid=report_2_fixups", *own)
    cells += planned("+grid=padding_vs_packing", *own)[1]
    fixups = load_fixups()
    for fixup in fixups.fixups:
        cell = {"numerics": "default"} | fixups.cell | fixup.cell
        reference = fixups.reference | fixup.reference
        assert any(has(pair[0], cell) and has(pair[1], reference) for pair in cells), fixup.id


def test_without_the_hub_the_published_checkpoint_gives_one_line_that_names_another(tmp_path: Path) -> None:
    words = "+grid=load_strategy", "load_strategy=cast_after_load", "reported=logit_divergence_bf16", "-m"
    cell = "checkpoint=smollm2_135m", "device=cpu", "wandb.mode=disabled"
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_ETAG_TIMEOUT": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sweeper", "--config-dir", str(CONF), *words, *cell],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **nowhere},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2  # before any cell ran
    assert "Traceback" not in done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "cannot be reached" in line]
    assert "checkpoint=smollm2_135m_instruct needs no hub" in line
