"""The saved workspace: what its panels name is really in the runs, and what a server gets of it is what a file has."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from sweeper.cli.main import dispatch
from sweeper.records.cell import Cost, LanguageFigures
from tests.sinks.records import cell, modules
from tests.sinks.sweeps import measured, stored
from tests.sinks.wandb_files import OfflineRun, read_runs
from tests.sinks.wandb_server import ENTITY, wandb_server

pytest.importorskip("wandb_workspaces")
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("wandb_alone")]
KEY = "0123456789" * 4


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two cells that differ in dtype, with every kind of figure."""
    language = dict.fromkeys(LanguageFigures.model_fields, 1)
    more: dict[str, Any] = {
        "cost": Cost(load_time_s=None, latency_ms=12.5, peak_memory_gib=1.5, repeatable=True),
        "language": LanguageFigures.model_validate(language),
    }
    cells = [(measured(f"c{i}", axes=cell(dtype=dtype).axes(), **more), modules()) for i, dtype in enumerate(DTYPES)]
    return stored(tmp_path / "outputs" / "load_strategy" / "sweep1", cells).folder


DTYPES = ("bfloat16", "float16")


def written(sweep: Path, tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "workspace.json"
    assert dispatch(["wandb-workspace", str(sweep), "--file", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def panels(view: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    sections = view["spec"]["section"]["panelBankConfig"]["sections"]
    return [panel["config"] for section in sections for panel in section["panels"] if panel["viewType"] == kind]


def runs_of(sweep: Path) -> list[OfflineRun]:
    assert dispatch(["wandb", str(sweep)]) == 0
    wandb.teardown()
    return read_runs(sweep)


def reaches(tree: Any, path: str) -> bool:
    for part in path.split("."):
        if not isinstance(tree, dict) or part not in tree:
            return False
        tree = tree[part]
    return True


def test_what_every_panel_names_is_in_every_run(sweep: Path, tmp_path: Path) -> None:
    view, runs = written(sweep, tmp_path), runs_of(sweep)
    cells = [run for run in runs if run.run.job_type == "cell"]
    (of_all,) = (run for run in runs if run.run.job_type == "sweep")
    accessors = [column["accessor"] for plot in panels(view, "Parallel Coordinates Plot") for column in plot["columns"]]
    accessors += [plot[axis] for plot in panels(view, "Scatter Plot") for axis in ("xAxis", "yAxis")]
    accessors += list(view["spec"]["section"]["runSets"][0]["runFeed"]["columnPinned"])
    assert {accessor.partition(":")[0] for accessor in accessors} == {"config", "summary", "run"}
    assert len(accessors) >= 14
    optional = {"summary:cause", "summary:reason", "summary:verdict"}  # of cells that were judged
    for run in cells:
        for accessor in accessors:
            kind, _, name = accessor.partition(":")
            if kind == "config":
                assert reaches(run.config, name.removesuffix(".value")), accessor
            elif kind == "summary" and accessor not in optional:
                assert reaches(run.summary, name), accessor
        for plot in panels(view, "Run History Line Plot"):
            steps = [row for row in run.history if plot["xAxis"] in row and plot["metrics"][0] in row]
            assert steps, plot
            assert run.step_metrics[plot["metrics"][0]] == plot["xAxis"]
    assert "cells" in of_all.summary
    (filtered,) = view["spec"]["section"]["runSets"][0]["filters"]["filters"]
    assert {run.run.run_group for run in runs} == {filtered["value"]}


def test_it_has_what_one_looks_for(sweep: Path, tmp_path: Path) -> None:
    view = written(sweep, tmp_path)
    names = [section["name"] for section in view["spec"]["section"]["panelBankConfig"]["sections"]]
    assert names[0] == "Verdicts"
    logarithmic = {plot["metrics"][0] for plot in panels(view, "Run History Line Plot") if plot.get("yLogScale")}
    assert {"layer/rel_l2", "layer/max_abs"} <= logarithmic
    assert "text/embedding_cosine" in {plot["metrics"][0] for plot in panels(view, "Run History Line Plot")}
    (coordinates,) = panels(view, "Parallel Coordinates Plot")
    assert coordinates["columns"][0]["accessor"] == "config:dtype.value"
    assert any(column["accessor"] == "summary:output.rel_l2" and column["log"] for column in coordinates["columns"])
    scatter = panels(view, "Scatter Plot")[0]
    assert (scatter["xAxis"], scatter["yAxis"]) == ("summary:cost.latency_ms", "summary:output.rel_l2")
    assert len(panels(view, "Run Comparer")) == len(panels(view, "Weave")) == 1


def test_the_server_gets_what_the_file_has_and_one_view_a_sweep(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(sweep, tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        for _ in range(2):
            assert dispatch(["wandb-workspace", str(sweep)]) == 0
        wandb.teardown()
    ((name, calls),) = server.views.items()
    assert len(calls) == 2
    assert (calls[0]["entityName"], calls[0]["projectName"], calls[0]["type"]) == (ENTITY, "sweeper", "project-view")
    assert without_ids(json.loads(calls[0]["spec"])) == without_ids(file["spec"])
    out = capsys.readouterr().out
    assert name.removeprefix("nw-").removesuffix("-v") in out
    assert KEY not in out


def without_ids(spec: Any) -> Any:
    """The spec without the random ids of its panels."""
    return json.loads(re.sub(r'"__id__": "\w+"', '"__id__": ""', json.dumps(spec)))


def test_without_a_login_the_file_is_named(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["wandb-workspace", str(sweep)]) == 2
    assert "nobody is logged in" in capsys.readouterr().err


def test_without_the_package_one_line_says_what_to_install(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    assert dispatch(["wandb-workspace", str(sweep), "--file", str(tmp_path / "x.json")]) == 2
    assert "pip install 'sweeper[wandb]'" in capsys.readouterr().err
