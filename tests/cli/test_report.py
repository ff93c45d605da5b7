from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from sweeper.cli import report
from sweeper.cli.schema import schema_markdown
from sweeper.errors import ConfigError
from sweeper.records.sweep import Sweep, short_ids
from sweeper.reports.markdown import markdown
from tests.sinks.sweeps import layered, measured, report_1, stored

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "sweeper", "report", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_the_command_shows_the_table_again(tmp_path: Path) -> None:
    report_1(tmp_path)
    shown = run(tmp_path)
    assert shown.returncode == 0
    assert "cast_before_move" in shown.stdout
    assert "where it starts" in shown.stdout


def test_one_cell_by_a_prefix_of_its_id(tmp_path: Path) -> None:
    report_1(tmp_path)
    shown = run(tmp_path, "--cell", "bb").stdout
    assert "cell bbbb55556666" in shown
    assert "9 of 9 parameters equal; 0 of 1 buffers equal" in shown
    assert "non-persistent buffer" in shown
    q_proj, o_proj = (
        next(line for line in shown.splitlines() if line.startswith(f"model.layers.0.self_attn.{name}"))
        for name in ("q_proj", "o_proj")
    )
    assert "equal" in q_proj
    assert "0.25" in o_proj


@pytest.mark.parametrize(
    ("prefix", "message"),
    [
        ("ffff", "ffff: no such cell. Give one of: aaaa11112222: dtype_at_load; aaaa33334444: cast_after_load; "),
        (
            "aaaa",
            "aaaa: several cells start so. Give one of: aaaa11112222: dtype_at_load; aaaa33334444: cast_after_load",
        ),
    ],
)
def test_an_id_that_names_no_one_cell_lists_the_cells(tmp_path: Path, prefix: str, message: str) -> None:
    report_1(tmp_path)
    refused = run(tmp_path, "--cell", prefix)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"sweeper report: {message}")
    assert refused.stderr.count("\n") == 1


def test_a_folder_above_the_sweep_names_the_sweep(tmp_path: Path) -> None:
    report_1(tmp_path / "grid" / "sweep1")
    with pytest.raises(ConfigError, match=r"no sweep\.json in it; did you mean .*sweep1"):
        Sweep.read(tmp_path)
    with pytest.raises(ConfigError, match="give outputs/<grid>/<sweep>"):
        Sweep.read(tmp_path / "nothing")


def test_a_broken_description_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{")
    with pytest.raises(ConfigError, match=r"sweep.json: Invalid JSON.*typed again, writes it anew"):
        Sweep.read(tmp_path)


def test_the_page_lands_in_the_sweep_and_markdown_where_it_is_asked_for(tmp_path: Path) -> None:
    sweep = report_1(tmp_path / "sweep")
    assert report.main([str(sweep.folder), "--html", "--markdown", str(tmp_path / "t.md")]) == 0
    assert (sweep.folder / "index.html").exists()
    assert "| cast_after_load |" in (tmp_path / "t.md").read_text()


def test_no_torch_is_imported(tmp_path: Path) -> None:
    report_1(tmp_path)
    code = (
        "import sys\nfrom sweeper.cli import report\n"
        f"report.main([{str(tmp_path)!r}, '--html', '--cell', 'bbbb'])\n"
        "assert 'torch' not in sys.modules and 'hydra' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_markdown_has_the_command_without_this_machines_folders(tmp_path: Path) -> None:
    text = markdown(report_1(tmp_path))
    assert "python -m sweeper +grid=load_strategy\n" in text
    assert "/somewhere/else" not in text
    assert "torch 2.13.0" in text
    assert "2026-01-01" in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 6
    assert len({line.replace("\\|", "").count("|") for line in rows}) == 1


def test_markdown_keeps_its_columns_whatever_a_name_holds(tmp_path: Path) -> None:
    text = markdown(report_1(tmp_path, inputs="a|b <script>`x`"))
    assert "a\\|b \\<script\\>\\`x\\`" in text
    assert "<script>" not in text


def test_a_sweep_that_was_stopped_shows_what_there_is(tmp_path: Path) -> None:
    sweep = stored(tmp_path, [(measured("abc", first_divergence="model.rotary_emb"), layered(0.5))], not_run=2)
    assert "3 cells: 0 equal to their reference in every module's output, 1 not, 2 not run yet." in markdown(sweep)


def test_modules_come_back_as_they_were_written(tmp_path: Path) -> None:
    rows = layered(0.5)
    assert repr(stored(tmp_path, [(measured("abc"), rows)]).modules("abc")) == repr(rows)  # repr: some figures are NaN


def test_short_ids_are_as_long_as_it_takes() -> None:
    assert short_ids(["aaaa1", "bbbb1"]) == {"aaaa1": "aaaa", "bbbb1": "bbbb"}
    assert short_ids(["aaaab1", "aaaab2"]) == {"aaaab1": "aaaab1", "aaaab2": "aaaab2"}


def test_the_documented_schema_is_the_schema() -> None:
    assert (ROOT / "docs" / "schema.md").read_text(encoding="utf-8") == schema_markdown(), (
        "type: python -m sweeper report --schema > docs/schema.md"
    )
