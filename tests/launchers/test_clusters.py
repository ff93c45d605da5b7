"""Workers on other machines: a real local cluster of Ray, and submitit's local executor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from sweeper.cli.run import carry_out
from sweeper.errors import ConfigError
from sweeper.launchers.elsewhere import checked_speaker
from sweeper.planning.plan import make_plan
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import Store
from sweeper.sinks.sink import Sink
from sweeper.sweep.run import run
from tests.composing import request_of
from tests.launchers.test_launchers import Counting

TINY = ("checkpoint=tiny_llama", "wandb.mode=disabled", "sweep=s", "verdict=false")
GRID = ("dtype=float32,bfloat16,float16", "attention=eager,sdpa", "layout=padded,packed", "reference={dtype:float32}")
OWN = {"attempt", "started_at", "cost"}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A cluster of a head and a node, a core each; this process is connected to it."""
    ray = pytest.importorskip("ray")
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    yield cluster, node
    ray.shutdown()
    cluster.shutdown()


class When(Sink):
    """Does something once, when the first cell is finished; notes what it is told."""

    def __init__(self, act: Callable[[], None]) -> None:
        self._act = act
        self.finished: list[str] = []

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self.finished.append(record.cell_id)
        if len(self.finished) == 1:
            self._act()


def swept(folder: Path, *arguments: str, sink: Sink | None = None) -> list[CellRecord]:
    from sweeper.launchers.registry import make_launcher

    request = request_of(*TINY, *GRID, f"output_dir={folder}", *arguments)
    assert run(request, {"listening": sink or Sink()}, make_launcher(request.settings)) == 0
    return Store(folder / "single" / "s").records()


@pytest.fixture
def inline(tmp_path: Path) -> list[dict[str, Any]]:
    """The records of one process."""
    return [record.model_dump(exclude=OWN) for record in swept(tmp_path / "inline", "launcher=inline")]


def test_ray_finishes_a_sweep_whose_node_is_killed_and_nothing_is_doubled(
    tmp_path: Path, two_nodes: Any, inline: list[dict[str, Any]]
) -> None:
    cluster, node = two_nodes
    killing = When(lambda: cluster.remove_node(node, allow_graceful=False))
    records = swept(tmp_path / "ray", "launcher=ray", "launcher.threads=1", sink=killing)
    assert [record.model_dump(exclude=OWN) for record in records] == inline
    assert {record.status for record in records} == {Status.OK}
    assert set(Counter(killing.finished).values()) == {1}
    assert len(killing.finished) == len(inline) == 12


def test_submitit_finishes_a_sweep_whose_job_is_killed_and_nothing_is_doubled(
    tmp_path: Path, inline: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    from sweeper.launchers import slurm

    jobs: list[Any] = []
    submitted = slurm.SlurmLauncher._submitted

    def noted(self: slurm.SlurmLauncher, calls: Any) -> Any:
        jobs.append(submitted(self, calls))
        return jobs[-1]

    monkeypatch.setattr(slurm.SlurmLauncher, "_submitted", noted)
    killing = When(lambda: jobs[1][-1]._process.kill())
    folder = tmp_path / "slurm"
    asked = ("launcher=slurm", "launcher.cluster=local", "launcher.jobs=2", "launcher.threads=1")
    records = swept(folder, *asked, sink=killing)
    assert [record.model_dump(exclude=OWN) for record in records] == inline
    assert set(Counter(killing.finished).values()) == {1}
    assert len(killing.finished) == len(inline) == 12
    assert [path.name for path in folder.iterdir()] == ["single"], "the jobs' files stayed"


def test_a_worker_that_this_machine_has_no_room_for_is_one_line(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(ConfigError, match=r"launcher.cpus_a_worker: a worker asks for 1000, and this machine has \d+;"):
        swept(tmp_path, "launcher=ray", "launcher.address=local", "launcher.cpus_a_worker=1000")


def test_where_there_is_no_slurm_it_is_one_line_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r'launcher=slurm: nothing can be submitted: .*"srun"'):
        carry_out(request_of(*TINY, "launcher=slurm", "dry_run=true", f"output_dir={tmp_path / 'out'}"))
    assert list((tmp_path / "out").iterdir()) == []


def test_stopping_while_the_plan_is_waited_for_takes_its_job_out_of_the_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    from sweeper.launchers import slurm

    ended: list[str] = []

    class Queued:
        def result(self) -> None:
            raise KeyboardInterrupt

        def cancel(self, check: bool = True) -> None:
            ended.append("job")

    monkeypatch.setattr(slurm.SlurmLauncher, "_submitted", lambda *_: [Queued()])
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, "launcher=slurm")
    assert ended == ["job"]


def test_a_worker_on_another_machine_than_the_plan_was_made_for_is_refused() -> None:
    plan = make_plan(request_of(*TINY), {"device": "cpu", "torch": "0.1"})
    with pytest.raises(
        ConfigError, match=r"a worker has \w+=.* and the plan was made for .*: give all workers the same"
    ):
        checked_speaker(lambda _: Counting(), plan.environment, lambda _: None)


def test_a_launcher_whose_packages_are_missing_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(
            ConfigError, match=rf"launcher={name} needs its packages \({package}\): pip install 'sweeper"
        ):
            carry_out(request_of(*TINY, f"launcher={name}"))
