"""Sweeps in a notebook."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest

import sweeper
from sweeper.errors import ConfigError
from sweeper.records.cell import TokenFigures
from tests.sinks.records import module
from tests.sinks.sweeps import measured, report_1, stored


def test_cells_and_modules_have_ids_and_axes_and_infinity_is_a_number(tmp_path: Path) -> None:
    report_1(tmp_path / "one")
    opened = sweeper.open_sweep(tmp_path / "one")
    cells, modules = opened.cells, opened.modules
    assert {"grid", "sweep", "cell_id", "reference_id", "load_strategy", "dtype"} <= {*cells} & {*modules}
    reference = cells[cells.cell_id == cells.reference_id]
    assert list(reference.output_sqnr_db) == [math.inf]
    assert modules.sqnr_db.dtype == cells.output_sqnr_db.dtype == float
    assert set(modules.cell_id) == set(cells.cell_id)
    rounded = modules[(modules.load_strategy == "cast_after_load") & (modules.max_abs > 0)]
    assert rounded.sort_values("order").name.iloc[0] == "model.rotary_emb"


def test_figures_by_token_are_a_frame_of_the_cells_that_have_them(tmp_path: Path) -> None:
    tokens = TokenFigures(text=(1, 0), position=(0, 0), max_abs=(0.5, math.inf), rel_l2=(0.25, 0.0))
    layer = module(0, "model.layers.3", 3, "layer", 0.5).model_copy(update={"tokens": tokens})
    stored(tmp_path, [(measured("with"), [layer]), (measured("without"), [])])
    frame = sweeper.open_sweep(tmp_path).tokens
    assert list(frame.cell_id) == ["with", "with"]
    assert list(frame.layer) == [3, 3]
    assert list(frame.max_abs) == [0.5, math.inf]


def test_any_number_of_folders_is_one_frame(tmp_path: Path) -> None:
    report_1(tmp_path / "one")
    report_1(tmp_path / "two")
    cells = sweeper.open_sweep(tmp_path / "one", str(tmp_path / "two")).cells
    assert len(cells) == 8
    assert cells.folder.nunique() == 2


def test_a_cell_without_modules_has_a_row_and_a_sweep_without_cells_none(tmp_path: Path) -> None:
    stored(tmp_path / "one", [(measured(), [])])
    stored(tmp_path / "none", [])
    assert len(sweeper.open_sweep(tmp_path / "one").cells) == 1
    assert len(sweeper.open_sweep(tmp_path / "none").modules) == 0
    with pytest.raises(ConfigError, match=r"no sweep\.json"):
        sweeper.open_sweep(tmp_path)


def test_opening_imports_neither_torch_nor_pandas_before_a_frame_is_asked_for(tmp_path: Path) -> None:
    report_1(tmp_path)
    code = (
        f"import sys, sweeper\nopened = sweeper.open_sweep({str(tmp_path)!r})\nrepr(opened)\n"
        "assert not {'torch', 'pandas'} & {*sys.modules}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
