"""`launcher=ray`: a task a unit. Ray says where it runs, and starts it again where its node is lost."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sweeper.config import RayLauncherSettings, Settings
from sweeper.errors import ConfigError, SweeperError
from sweeper.launchers.elsewhere import checked_speaker, missing_package, threads_here, with_threads
from sweeper.launchers.launcher import Finished, Lost, MakeWorker, Unit, Work, plan_here
from sweeper.launchers.messages import Message, Speaker, Started
from sweeper.launchers.unit_run import MOST_TRIES, UnitRun
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan, PlannedCell
from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    import ray

SPARE = 1
"""Tasks that wait in the cluster, so that no worker waits for this process."""


class RayLauncher:
    """Runs units as tasks; results come back as they are made. Made by `make_ray_launcher`."""

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.launcher, RayLauncherSettings)
        self._asked = settings.launcher
        self._timeout_s = settings.cell_timeout_s
        self._threads = self._asked.threads or threads_here()
        self._gpus = self._asked.gpus_a_worker or 1
        self._started_it = False
        self._environment: dict[str, Any] = {}
        self._device = "cpu"

    def plan(self, request: SweepRequest) -> Plan:
        self._connect()
        self._device = request.device
        self._require_room()
        import ray

        plan = _raised_here(lambda: ray.get(self._task(plan_here).remote(request)))
        self._environment = plan.environment
        return plan

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished | Lost]:
        import ray

        given = ray.put((pickle.dumps(make_worker), self._environment))
        task = self._task(_run_cells)
        tasks: dict[ray.ObjectRefGenerator, UnitRun] = {}
        last: Unit | None = None
        most = self._most_tasks()
        try:
            while True:
                while len(tasks) < most and (unit := work.take(last, [r.unit for r in tasks.values()])):
                    run = UnitRun(unit, self._timeout_s)
                    tasks[task.remote(given, unit.cells, run.together)] = run
                if not tasks:
                    return
                for running in _next_to_speak(tasks):
                    run = tasks[running]
                    last = run.unit
                    is_over = yield from _listen(running, run, sink, alone=False)
                    if is_over:
                        most = self._most_tasks()  # nodes come and go
                        del tasks[running]
                        if run.left:
                            tasks[task.remote(given, tuple(run.left), run.together)] = run
        finally:
            for running in tasks:
                ray.cancel(running, force=True)

    def close(self) -> None:
        if self._started_it:
            import ray

            ray.shutdown()
            self._started_it = False

    def _connect(self) -> None:
        import ray

        if ray.is_initialized():
            return
        on_terminate = signal.getsignal(signal.SIGTERM)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a task without GPUs keeps what it sees
        own = self._asked.address == "local"
        try:
            ray.init(
                address=self._asked.address,
                log_to_driver=False,
                logging_level=logging.ERROR if own else logging.WARNING,  # of a token for its own cluster
                include_dashboard=False if own else None,
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"launcher.address={self._asked.address}: {_first_line(error)}") from None
        if on_terminate is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray takes it, for an end without a word
        self._started_it = True

    def _require_room(self) -> None:
        """Refuses what a cluster of this process alone, which no node joins, would wait for without end."""
        import ray

        if not self._started_it or self._asked.address != "local":
            return
        room = ray.cluster_resources()
        asked = {"CPU": self._asked.cpus_a_worker or self._threads, "GPU": self._gpus if self._device == "cuda" else 0}
        for name, needed in asked.items():
            if needed > (there := room.get(name, 0)):
                setting = f"launcher.{name.lower()}s_a_worker"
                raise ConfigError(
                    f"{setting}: a worker asks for {needed:g}, and this machine has {there:g}; type fewer"
                )

    def _task(self, function: Any) -> Any:
        """A function as a Ray task with what one worker needs. A node that is lost is one try."""
        import ray

        gpus = {"num_gpus": self._gpus} if self._device == "cuda" else {}
        cpus = self._asked.cpus_a_worker or self._threads
        variables = with_threads(self._threads)
        return ray.remote(function).options(
            num_cpus=cpus, max_retries=MOST_TRIES - 1, runtime_env={"env_vars": variables}, **gpus
        )

    def _most_tasks(self) -> int:
        if self._asked.workers is not None:
            return self._asked.workers
        import ray

        room = ray.cluster_resources()
        most = room.get("CPU", 0) // (self._asked.cpus_a_worker or self._threads)
        if self._device == "cuda":
            most = min(most, room.get("GPU", 0) // self._gpus)
        return int(most) + SPARE


def make_ray_launcher(settings: Settings) -> RayLauncher:
    """The launcher, if Ray is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import ray  # noqa: F401
    except ImportError as error:
        raise missing_package("ray", error) from None
    return RayLauncher(settings)


def _next_to_speak(tasks: dict[ray.ObjectRefGenerator, UnitRun]) -> list[ray.ObjectRefGenerator]:
    """Waits until one of them has said something, ended, or taken too long."""
    import ray

    limits = [run.seconds_left for run in tasks.values() if run.seconds_left is not None]
    ready, _ = ray.wait(list(tasks), num_returns=1, timeout=min(limits, default=None))
    return [running for running, run in tasks.items() if running in ready or run.seconds_left == 0]


def _listen(
    running: ray.ObjectRefGenerator, run: UnitRun, sink: Sink, *, alone: bool
) -> Generator[Finished | Lost, None, bool]:
    """The results that a task has told by now, and what was lost with it. Returns whether it is over."""
    import ray

    try:
        while ray.wait([running], timeout=0)[0]:
            for said in ray.get(next(running)):
                if finished := run.hear(said, sink, alone=alone):
                    yield finished
    except StopIteration:
        return True  # with cells left where its device refuses everything
    except ray.exceptions.RayTaskError as error:
        raise _as_ours(error) from None
    except ray.exceptions.RayError as error:  # it was tried again by Ray, and lost again
        if lost := run.lost(f"Ray's {type(error).__name__}", tries_again=False):
            yield lost
        return True
    if run.seconds_left == 0:
        ray.cancel(running, force=True)
        if lost := run.lost(None, tries_again=False):
            yield lost
        return True
    return False


@dataclass
class _Here:
    """What this worker process of Ray keeps from task to task."""

    made_by: bytes = b""
    speaker: Speaker | None = None
    said: list[Message] | None = None
    is_usable: bool = True


_here = _Here()


def _run_cells(
    given: tuple[bytes, dict[str, Any]], cells: Sequence[PlannedCell], together: bool
) -> Iterator[list[Message]]:
    """The task: what a worker says, a cell's end with the start of the next."""
    if not _here.is_usable:
        os._exit(1)  # its device refuses everything: Ray starts the task again, in another process
    made_by, planned_for = given
    if _here.speaker is None or _here.made_by != made_by:
        said: list[Message] = []
        _here.speaker = checked_speaker(pickle.loads(made_by), planned_for, said.append)
        _here.said, _here.made_by = said, made_by
    assert _here.said is not None
    yield [Started(cells[0].cell_id)]
    for place, planned in enumerate(cells):
        after = next(iter(cells[place + 1 :]), None)
        _here.said.clear()
        _here.is_usable = _here.speaker.run_cell(planned, cells[place + 1 :] if together else ())
        told: list[Message] = [message for message in _here.said if not isinstance(message, Started)]
        if after is None or not _here.is_usable:
            yield told
            return
        yield [*told, Started(after.cell_id)]


def _raised_here(function: Any) -> Any:
    """Calls it; what a task raised on purpose is raised as if it had happened here."""
    import ray

    try:
        return function()
    except ray.exceptions.RayTaskError as error:
        raise _as_ours(error) from None


def _as_ours(error: ray.exceptions.RayTaskError) -> Exception:
    cause = error.cause
    if isinstance(cause, SweeperError):
        return cause
    return SweeperError(f"a Ray worker failed: {type(cause).__name__}: {_first_line(cause)}")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
