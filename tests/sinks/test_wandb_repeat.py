"""W&B is made from the records: what has no finished run is written, and what has one is not written again."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import wandb

from sweeper.cli.main import dispatch
from sweeper.config import WandbSettings
from sweeper.errors import ConfigError
from sweeper.records.cell import Status
from sweeper.records.store import Store
from sweeper.sinks.wandb import folder, make_wandb_sink
from sweeper.sinks.wandb.folder import RunsFolder, is_finished
from sweeper.sinks.wandb.rows import without_paths
from tests.sinks.records import Planned, SmallPlan, cell, modules, record
from tests.sinks.sweeps import measured, report_1, stored
from tests.sinks.wandb_files import OfflineRun, read_runs
from tests.sinks.wandb_server import WandbServer, wandb_server

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("wandb_alone")]


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """A sweep of four cells, without any run."""
    return report_1(tmp_path / "outputs" / "load_strategy" / "sweep1").folder


def written(folder: Path, *arguments: str) -> list[OfflineRun]:
    """What lies there after `sweeper wandb`."""
    assert dispatch(["wandb", str(folder), *arguments]) == 0
    wandb.teardown()
    return read_runs(folder)


def kinds(runs: list[OfflineRun]) -> Counter[str]:
    return Counter(run.run.job_type for run in runs)


def test_a_sweep_without_runs_gets_one_a_cell_and_one_of_all(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert kinds(written(sweep)) == {"cell": 4, "sweep": 1}
    assert "4 cells and the run of the sweep written" in capsys.readouterr().out


def test_repeating_adds_nothing(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [run.folder for run in written(sweep)]
    assert [run.folder for run in written(sweep)] == before
    assert "0 cells and no run of the sweep written" in capsys.readouterr().out


def test_what_was_left_half_written_is_written_anew(sweep: Path) -> None:
    runs = written(sweep)
    path = next(runs[0].folder.glob("*.wandb"))
    path.write_bytes(path.read_bytes()[:-40])  # as a process that was killed leaves it
    assert not is_finished(runs[0].folder)
    shutil.rmtree(runs[2].folder)
    again = written(sweep)
    assert kinds(again) == {"cell": 4, "sweep": 1}
    assert all(is_finished(run.folder) for run in again)
    assert {run.run.run_id for run in again} == {run.run.run_id for run in runs}


def test_a_cell_that_ran_again_has_one_run(sweep: Path) -> None:
    written(sweep)
    store = Store(sweep)
    old = store.read("aaaa11112222")
    assert old is not None
    shutil.rmtree(sweep / "cells" / old.cell_id)
    store.write(old.model_copy(update={"attempt": "another"}), modules())
    runs = written(sweep)
    assert kinds(runs) == {"cell": 4, "sweep": 1}
    assert any("another" in run.run.run_id for run in runs)


def test_a_resumed_sweep_writes_what_is_missing_by_itself(sweep: Path) -> None:
    store = Store(sweep)
    records = [store.read(path.name) for path in sorted((sweep / "cells").iterdir())]
    found = [one for one in records if one is not None]
    for _ in range(2):
        sink = make_wandb_sink(WandbSettings())
        assert sink is not None
        cells = tuple(Planned(cell(), one.cell_id) for one in found)
        sink.sweep_started(SmallPlan(folder=sweep, cells=cells, grid="load_strategy"))
        for one in found:
            sink.cell_skipped(one)
        sink.sweep_finished(found)
        wandb.teardown()
        assert kinds(read_runs(sweep)) == {"cell": 4, "sweep": 1}
    assert kinds(written(sweep)) == {"cell": 4, "sweep": 1}


def test_a_run_that_a_living_process_writes_is_left_to_it(sweep: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom sweeper.sinks.wandb.folder import RunsFolder\n"
        f"with RunsFolder(Path({str(sweep)!r})).claimed('run-1') as mine:\n"
        "    print(mine, flush=True)\n    sys.stdin.read()"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "True\n"
    with RunsFolder(sweep).claimed("run-1") as mine:
        assert not mine
    other.kill()
    other.communicate()
    with RunsFolder(sweep).claimed("run-1") as mine:
        assert mine


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
    with wandb_server() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        yield running
        wandb.teardown()


def sync(folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "wandb", "sync", "--yes"], cwd=folder, check=True, capture_output=True)


def test_a_sweep_that_was_moved_syncs_with_its_tables(sweep: Path, server: WandbServer, tmp_path: Path) -> None:
    written(sweep)
    assert not list((tmp_path / "wandb_data_dir").rglob("*.json"))
    moved = Path(shutil.move(sweep, tmp_path / "elsewhere"))
    sync(moved)
    tables = {json.loads(data)["nrows"] for name, data in server.uploads.items() if name.startswith("artifact/")}
    assert tables == {4, len(modules_of(moved))}
    assert len(server.runs) == 5


def modules_of(folder: Path) -> list[object]:
    return list(Store(folder).modules("aaaa11112222"))


def test_what_was_uploaded_is_not_written_again(sweep: Path, server: WandbServer) -> None:
    before = [run.folder for run in written(sweep)]
    sync(sweep)
    assert [run.folder for run in written(sweep)] == before


def test_no_path_of_this_machine_is_sent(server: WandbServer, tmp_path: Path) -> None:
    place = tmp_path / "models" / "mine"
    axes = cell().axes() | {"checkpoint": f"folder+path={place}", "inputs": f"file+file={tmp_path}/texts.txt"}
    failed = record("c2", status=Status.FAILED, reason=f"{place} lacks a.weight", traceback=f"in {place}")
    folder = tmp_path / "outputs" / "load_strategy" / "sweep1"
    config = {"overrides": [f"checkpoint={place}", f"output_dir={tmp_path}"], "config_dirs": [str(tmp_path / "conf")]}
    stored(folder, [(measured("c1", axes=axes), modules()), (failed, [])], config=config)
    written(folder)
    sync(folder)
    sent = json.dumps([server.runs, server.files]) + "".join(map(str, server.uploads.values()))
    assert str(tmp_path) not in sent
    assert "folder+path=mine" in sent
    assert "checkpoint=mine" in sent
    assert "mine lacks a.weight" in sent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("checkpoint=/home/me/m/x dtype=float32", "checkpoint=x dtype=float32"),
        ("folder+path=~/models/x", "folder+path=x"),
        ("C:\\Users\\me\\x.txt lacks it", "x.txt lacks it"),
        ("relative ./a/b and a/b, 1 / 2, q/k", "relative ./a/b and a/b, 1 / 2, q/k"),
        ("see https://a.b/c", "see https://a.b/c"),
        ("'/a b", "'a b"),
    ],
)
def test_paths_end_as_names(text: str, expected: str) -> None:
    assert without_paths({"x": [text]}) == {"x": [expected]}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"project": "a/b"}, r"wandb\.project: Invalid project name 'a/b': cannot contain"),
        ({"project": "x" * 129}, r"wandb\.project: .*128 characters"),
        ({"tags": ["x" * 65]}, r"wandb\.tags: .*between 1 and 64 characters"),
    ],
)
def test_a_bad_name_is_refused_first(given: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as raised:
        make_wandb_sink(WandbSettings.model_validate(given))
    assert "\n" not in str(raised.value)


def test_a_bad_server_is_refused_first(monkeypatch: pytest.MonkeyPatch) -> None:
    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", "banana")
    for mode in ("offline", "online"):
        with pytest.raises(ConfigError, match=r"W&B refuses .* base_url: .*valid URL.*; unset it") as raised:
            make_wandb_sink(WandbSettings.model_validate({"mode": mode}))
        assert "\n" not in str(raised.value)


def test_a_writer_that_ends_while_it_is_looked_at_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ending, looking = RunsFolder(tmp_path), RunsFolder(tmp_path)
    with ending.claimed("run"):
        pass

    def ends(_lock: Path) -> bool:
        ending.close(wait_s=0)
        return True

    monkeypatch.setattr(folder, "_is_held", ends)
    with looking.claimed("run") as mine:
        assert mine
