"""What reaches a server, from an online run and from `wandb sync`: the real client against a loopback stand-in."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import wandb

from sweeper.config import WandbSettings
from sweeper.sinks.wandb import make_wandb_sink
from tests.sinks.records import Planned, SmallPlan, cell, modules, record
from tests.sinks.test_wandb import TAG
from tests.sinks.wandb_files import read_runs
from tests.sinks.wandb_server import WandbServer, wandb_server

pytestmark = pytest.mark.usefixtures("wandb_alone")

RUN = f"c1-a1-{TAG}"
KEY = "0123456789" * 4  # of the right length; no server knows it


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running
        wandb.teardown()


def log_sweep(folder: Path, settings: WandbSettings) -> None:
    sink = make_wandb_sink(settings)
    assert sink is not None
    sink.sweep_started(SmallPlan(folder=folder, cells=(Planned(cell(), "c1"),)))
    sink.cell_finished(record(), modules())
    sink.sweep_finished([record()])
    wandb.teardown()


def log_sweep_afresh(folder: Path, settings: WandbSettings) -> None:
    """Logs in a fresh process: what other tests told wandb's client, which server among it, outlasts its teardown."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        fresh.submit(log_sweep, folder, settings).result()


def check_uploaded(server: WandbServer) -> None:
    uploaded = server.runs[RUN]
    assert (uploaded["groupName"], uploaded["jobType"], uploaded["project"]) == ("sweep1", "cell", "sweeper")
    assert not uploaded.get("host")
    config = json.loads(uploaded["config"])
    assert config["dtype"] == {"value": "bfloat16"}
    assert config["reference"]["value"]["dtype"] == "float32"
    history = server.files[RUN]["wandb-history.jsonl"]
    assert [row["layer/max_abs"] for row in history if "layer" in row] == [0, 0.25, 0.5]
    summary = server.files[RUN]["wandb-summary.json"][-1]
    assert summary["output"]["max_abs"] == 0.5
    assert summary["layer/max_abs"] == {"max": 0.5, "mean": 0.25}
    assert json.loads(server.uploads["artifact/modules.table.json"])["nrows"] == len(modules())
    assert json.loads(server.uploads["artifact/cells.table.json"])["nrows"] == 1
    assert set(server.exit_codes.values()) == {0}
    assert len(server.runs) == 2


def test_an_online_run_uploads_everything_and_shows_no_key(
    server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log_sweep_afresh(tmp_path, WandbSettings(mode="online"))
    check_uploaded(server)
    assert server.runs[RUN]["program"] == "sweeper"
    assert KEY not in "".join(capfd.readouterr())


def test_an_offline_sweep_uploads_with_wandb_sync(server: WandbServer, tmp_path: Path) -> None:
    log_sweep(tmp_path, WandbSettings(mode="offline"))
    assert not server.runs
    subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes"], cwd=tmp_path, check=True, capture_output=True)
    check_uploaded(server)


def test_a_server_that_is_gone_turns_the_rest_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with wandb_server() as gone:
        url = gone.url
    monkeypatch.setenv("WANDB_BASE_URL", url)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr("sweeper.sinks.wandb.writer.INIT_TIMEOUT_S", 2.0)
    log_sweep(tmp_path, WandbSettings(mode="online"))
    kept = [run for run in read_runs(tmp_path) if run.folder.name.startswith("offline-")]
    assert [(run.run.job_type, run.exit_code) for run in kept] == [("cell", 0), ("sweep", 0)]
    (warning,) = [entry.getMessage() for entry in caplog.records if entry.name == "sweeper.sinks.wandb"]
    assert "written offline" in warning
    assert KEY not in caplog.text
