"""The W&B sink against the real client, offline: what it wrote is read back from disk."""

from __future__ import annotations

import gc
import hashlib
import importlib.util
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import wandb

from scripts.bench_wandb import PARTS
from sweeper.config import WandbSettings
from sweeper.errors import ConfigError
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.sinks.sink import Sink
from sweeper.sinks.wandb import make_wandb_sink
from sweeper.sinks.wandb.rows import (
    MODULE_COLUMNS,
    MODULE_MEASURES,
    MOST_MODULES,
    MOST_TEXTS,
    cell_summary,
    curve_rows,
    module_table,
    text_rows,
)
from tests.sinks.records import Planned, SmallPlan, cell, measures, modules, record, text
from tests.sinks.wandb_files import OfflineRun, read_runs

pytestmark = pytest.mark.usefixtures("wandb_alone")

TAG = hashlib.sha256(b"bf16_vs_fp32/sweep1").hexdigest()[:6]
"""A hash of the sweep's name, in the ids of its cells' runs."""


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The sink's own; wandb's logger writes its debug log through the same handler."""
    return [entry.getMessage() for entry in caplog.records if entry.name == "sweeper.sinks.wandb"]


def started_sink(folder: Path) -> Sink:
    sink = make_wandb_sink(WandbSettings(tags=("mine",)))
    assert sink is not None
    sink.sweep_started(SmallPlan(folder=folder, cells=(Planned(cell(), "c1"), Planned(cell(dtype="float16"), "c2"))))
    return sink


def log_cells(folder: Path, attempts: list[tuple[CellRecord, list[ModuleRecord]]]) -> list[OfflineRun]:
    """Logs the attempts as one sweep; the runs of its cells, then the run of the sweep."""
    sink = started_sink(folder)
    for cell_record, rows in attempts:
        sink.cell_finished(cell_record, rows)
    sink.sweep_finished([cell_record for cell_record, _ in attempts])
    wandb.teardown()
    return read_runs(folder)


def test_a_cell_becomes_a_run_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, _ = log_cells(tmp_path, [(record(), modules())])
    assert capfd.readouterr() == ("", "")
    assert (run.run.run_id, run.run.display_name) == (f"c1-a1-{TAG}", "bfloat16")
    assert (run.run.run_group, run.run.job_type, run.run.project) == ("sweep1", "cell", "sweeper")
    assert list(run.run.tags) == ["bf16_vs_fp32", "mine"]
    assert run.exit_code == 0
    assert run.config["reference"] == {"dtype": "float32", "attention": "eager", "use_cache": False}
    assert run.config.items() >= cell().axes().items()
    assert run.config["environment"] == {"torch": "2.13.0", "device": "cpu"}
    assert (run.config["cell_id"], run.config["schema_version"]) == ("c1", 1)


def test_curves_have_one_row_a_layer_and_lie_over_each_other(tmp_path: Path) -> None:
    worse = [row.model_copy(update={"measures": measures(0.5)}) for row in modules()]
    first, second, _ = log_cells(tmp_path, [(record("c1"), worse), (record("c2"), worse)])
    assert [row["layer"] for row in first.curve("layer")] == [0, 1, 2]
    assert [row.keys() for row in first.curve("layer")] == [row.keys() for row in second.curve("layer")]
    assert first.step_metrics == second.step_metrics
    steps = {"layer/max_abs": "layer", "layer_attention/q_proj": "layer", "text/embedding_cosine": "text"}
    assert first.step_metrics.items() >= steps.items()
    assert first.curve("layer")[0]["layer_attention/q_proj"] == pytest.approx(0.5 / math.sqrt(8))
    assert [row["text/embedding_cosine"] for row in first.curve("text")] == [1.0, 0.75]


def test_summaries_of_curves_reach_names_with_dots(tmp_path: Path) -> None:
    run, _ = log_cells(tmp_path, [(record(), modules())])
    assert run.summary["layer/max_abs"] == {"max": 0.5, "mean": 0.25}
    assert run.summary["layer_attention/q_proj"]["max"] == pytest.approx(0.5 / math.sqrt(8))
    assert run.summary["layer/cosine"].keys() == run.summary["layer/sqnr_db"].keys() == {"min", "mean"}
    assert run.summary["text/embedding_cosine"] == {"min": 0.75, "mean": 0.875}
    assert run.summary["output"]["max_abs"] == 0.5
    assert run.summary["embedding_cosine"] == {"min": 0.75, "mean": 0.875}
    assert run.summary["state"]["buffers_equal"] == 0
    assert run.summary["cost"] == {"latency_ms": 12.5, "repeatable": True}


def test_the_table_of_modules_has_those_that_are_furthest_off(tmp_path: Path) -> None:
    run, _ = log_cells(tmp_path, [(record(), modules())])
    table = run.table("modules")
    assert tuple(table["columns"]) == (*MODULE_COLUMNS, *MODULE_MEASURES)
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["name"] for row in rows] == [module.name for module in modules()]
    assert rows[-1]["max_abs"] == 0.5
    assert rows[0]["sqnr_db"] is None  # identical: infinite
    many = module_table(modules(layers=99))
    assert len(many) == MOST_MODULES
    assert many[-1]["name"] == "model.layers.98"


def test_the_sweep_becomes_a_run_with_the_table_of_cells(tmp_path: Path) -> None:
    unsupported = record("c2", status=Status.UNSUPPORTED, reason="flash attention needs a GPU")
    cell_run, sweep_run = log_cells(tmp_path, [(record(), modules()), (unsupported, [])])
    assert (cell_run.run.job_type, sweep_run.run.job_type) == ("cell", "sweep")
    assert sweep_run.run.run_group == cell_run.run.run_group
    table = sweep_run.table("cells")
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["cell_id"], row["status"], row["output.max_abs"]) for row in rows] == [
        ("c1", "ok", 0.5),
        ("c2", "unsupported", None),
    ]
    assert rows[1]["reason"] == "flash attention needs a GPU"
    assert sweep_run.summary["statuses"] == {"ok": 1, "failed": 0, "unsupported": 1}


def test_a_failed_cell_ends_with_exit_code_1_and_its_reason(tmp_path: Path) -> None:
    failed = record(status=Status.FAILED, reason="CUDA out of memory", traceback="Traceback ...")
    run, following, _ = log_cells(tmp_path, [(failed, []), (record("c2"), modules())])
    assert run.exit_code == 1
    assert (run.summary["status"], run.summary["reason"]) == ("failed", "CUDA out of memory")
    assert (following.exit_code, len(following.curve("layer"))) == (0, 3)


def test_nothing_leaks_from_a_run_that_an_exception_left_open(tmp_path: Path) -> None:
    left_open = wandb.init(mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True))
    left_open.log({"left_open": 1})
    started_sink(tmp_path).cell_finished(record(), modules())
    left_open.finish()
    wandb.teardown()
    (run,) = (run for run in read_runs(tmp_path) if run.run.run_id == f"c1-a1-{TAG}")
    assert not [row for row in run.history if "left_open" in row]
    assert len(run.curve("layer")) == 3


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
def test_a_failure_while_logging_closes_the_run_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    not_for_json = [modules()[0].model_copy(update={"module_type": object()})]
    attempts = [(record("c1", attempt="a1"), not_for_json), (record("c1", attempt="a2"), not_for_json)]
    runs = log_cells(tmp_path, [*attempts, (record("c2"), modules())])
    (warning,) = warnings(caplog)
    assert warning.startswith("Weights & Biases: a cell could not be logged")
    ended = [(run.run.run_id, run.exit_code) for run in runs[:3]]
    assert ended == [(f"c1-a1-{TAG}", 1), (f"c1-a2-{TAG}", 1), (f"c2-a1-{TAG}", 0)]


def test_a_service_that_died_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = started_sink(tmp_path)
    sink.cell_finished(record("c1"), modules())
    for process in psutil.Process().children():
        if process.name() == "wandb-core":
            process.kill()
    sink.cell_finished(record("c2"), modules())
    sink.cell_finished(record("c2", attempt="a2"), modules())
    assert len(warnings(caplog)) == 1
    with pytest.raises(ConnectionError):  # wandb's own goodbye to the service
        wandb.teardown()


def test_a_run_that_ended_is_freed(tmp_path: Path) -> None:
    """wandb keeps its last hundred artifacts, and with each its table and its run."""

    def kept() -> set[int]:
        gc.collect()
        return {id(one) for one in gc.get_objects() if isinstance(one, (wandb.Run, wandb.Table, wandb.Artifact))}

    before, sink = kept(), started_sink(tmp_path)
    for cell_id in ("c1", "c2"):
        sink.cell_finished(record(cell_id), modules())
    assert kept() <= before
    sink.sweep_finished([record("c1"), record("c2")])
    assert kept() <= before
    assert [len(run.table("modules")["data"]) for run in read_runs(tmp_path)[:2]] == [len(modules())] * 2


def test_nothing_tells_the_machine_or_the_code(tmp_path: Path) -> None:
    run, _ = log_cells(tmp_path, [(record(), modules())])
    assert run.run.host == ""
    assert not run.run.HasField("git")
    assert [path.name for path in (run.folder / "files").iterdir()] == ["media"]


def test_infinity_and_nan_are_never_logged() -> None:
    identical = modules(layers=1)
    (row,) = curve_rows(identical)
    assert "layer/sqnr_db" not in row
    assert row["layer/max_abs"] == 0.0
    summary = cell_summary(record(output=measures(0.0)))
    assert {"sqnr_db", "min_token_cosine"}.isdisjoint(summary["output"])
    assert all(math.isfinite(value) for value in summary["output"].values())
    assert "embedding_cosine" not in cell_summary(record(texts=(text(0, 1.0), text(1, math.nan))))


def test_of_many_texts_those_that_are_furthest_off_have_a_row() -> None:
    texts = tuple(text(number, number / 1e4 if number else math.nan) for number in range(10_000))
    rows = text_rows(record(texts=texts[::-1]))
    assert [row["text"] for row in rows] == list(range(MOST_TEXTS))


def test_disabled_needs_no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert make_wandb_sink(WandbSettings(mode="disabled")) is None


@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_missing_package_is_one_line(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install .sweeper\[wandb\]") as caught:
        make_wandb_sink(WandbSettings.model_validate({"mode": mode}))
    assert "\n" not in str(caught.value)


def test_online_without_a_login_is_one_line_and_no_prompt() -> None:
    with pytest.raises(ConfigError, match="wandb login") as caught:
        make_wandb_sink(WandbSettings(mode="online"))
    assert "\n" not in str(caught.value)


def test_a_malformed_key_is_one_line_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short-secret")
    with pytest.raises(ConfigError) as caught:
        make_wandb_sink(WandbSettings(mode="online"))
    assert "secret" not in str(caught.value)


def test_the_module_imports_nothing_heavy() -> None:
    assert importlib.util.find_spec("wandb")
    code = "import sys, sweeper.sinks.wandb; print({'wandb', 'torch', 'pandas', 'pyarrow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_logging_a_cell_costs_at_most_60_ms_of_this_process(tmp_path: Path) -> None:
    """`scripts/bench_wandb.py` has the time by the clock, which other processes of the machine share."""
    rows = modules(30, PARTS)
    sink = started_sink(tmp_path)
    cpu_ms = []
    for number in range(15):
        before = time.process_time()
        sink.cell_finished(record(f"c{number}"), rows)
        cpu_ms.append(1e3 * (time.process_time() - before))
    assert statistics.median(cpu_ms[5:]) < 60
