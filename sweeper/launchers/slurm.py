"""`launcher=slurm`: array jobs of units, through submitit. Jobs say how they get on in files that all nodes share."""

from __future__ import annotations

import contextlib
import pickle
import shutil
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sweeper.config import Settings, SlurmLauncherSettings
from sweeper.errors import ConfigError
from sweeper.launchers.elsewhere import checked_speaker, compute_with, missing_package, threads_here
from sweeper.launchers.launcher import Finished, Lost, MakeWorker, Work, plan_here
from sweeper.launchers.messages import Message
from sweeper.launchers.unit_run import UnitRun
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan, PlannedCell
from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    import submitit

LOOK_AGAIN_S = 0.5


class SlurmLauncher:
    """Submits units as jobs, as many at once as were asked for. Made by `make_slurm_launcher`."""

    def __init__(self, settings: Settings) -> None:
        assert isinstance(settings.launcher, SlurmLauncherSettings)
        self._asked = settings.launcher
        self._timeout_s = settings.cell_timeout_s
        self._threads = self._asked.threads or threads_here()
        self._output_dir = Path(settings.output_dir)
        self._folder: Path | None = None
        self._environment: dict[str, Any] = {}
        self._device = "cpu"
        self._jobs: list[_Job] = []

    def plan(self, request: SweepRequest) -> Plan:
        self._device = request.device
        job = self._submitted([(_planned, (self._threads, request))])[0]
        try:
            outcome = job.result()
        except Exception as error:  # of submitit: the job could not run, or was ended
            raise ConfigError(f"launcher=slurm: the job that plans the sweep failed: {_last_line(error)}") from None
        except KeyboardInterrupt:  # it may wait in the queue for hours
            _cancel(job)
            raise
        if isinstance(outcome, ConfigError):
            raise outcome
        self._environment = outcome.environment
        return outcome

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished | Lost]:
        given = pickle.dumps(make_worker)
        try:
            while True:
                runs: list[UnitRun] = []
                beside = [job.run.unit for job in self._jobs]
                while len(self._jobs) + len(runs) < self._asked.jobs and (unit := work.take(None, beside)):
                    runs.append(UnitRun(unit, self._timeout_s))
                    beside.append(unit)
                self._submit(runs, given)
                if not self._jobs:
                    return
                time.sleep(LOOK_AGAIN_S)
                for job in list(self._jobs):
                    yield from job.listen(sink)
                over = [job for job in self._jobs if job.is_over]
                self._jobs = [job for job in self._jobs if not job.is_over]
                self._submit([job.run for job in over if job.run.left], given)
        finally:
            self._end_jobs()

    def close(self) -> None:
        self._end_jobs()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def _end_jobs(self) -> None:
        for job in self._jobs:
            job.cancel()
        self._jobs = []

    def _submit(self, runs: Sequence[UnitRun], given: bytes) -> None:
        """An array of jobs, one a unit."""
        if not runs:
            return
        said = [Path(tempfile.mkstemp(suffix=".messages", dir=self._made_folder())[1]) for _ in runs]
        calls = [
            (_run_cells, (self._threads, given, self._environment, tuple(run.left), run.together, path))
            for run, path in zip(runs, said, strict=True)
        ]
        jobs = self._submitted(calls)
        self._jobs += [_Job(job, run, path) for job, run, path in zip(jobs, runs, said, strict=True)]

    def _submitted(self, calls: Sequence[tuple[Any, tuple[Any, ...]]]) -> list[submitit.Job[Any]]:
        import submitit

        asked: dict[str, Any] = {"timeout_min": self._asked.time_min, "cpus_per_task": self._asked.cpus_a_worker}
        if self._device == "cuda":
            asked["gpus_per_node"] = self._asked.gpus_a_worker or 1
        if self._asked.memory_gib is not None:
            asked["mem_gb"] = self._asked.memory_gib
        if self._asked.cluster == "slurm":
            asked |= {"slurm_array_parallelism": self._asked.jobs, "slurm_job_name": "sweeper"}
            asked |= {"slurm_partition": self._asked.partition} if self._asked.partition else {}
            asked["slurm_additional_parameters"] = dict(self._asked.more)
        try:
            executor = submitit.AutoExecutor(folder=self._made_folder() / "%j", cluster=self._asked.cluster)
            executor.update_parameters(**asked)
            with executor.batch():
                return [executor.submit(function, *arguments) for function, arguments in calls]
        except (RuntimeError, ValueError) as error:  # no Slurm here, or it refuses
            raise ConfigError(f"launcher=slurm: nothing can be submitted: {_last_line(error)}") from None

    def _made_folder(self) -> Path:
        if self._folder is None:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix=".jobs-", dir=self._output_dir)).absolute()
        return self._folder


def make_slurm_launcher(settings: Settings) -> SlurmLauncher:
    """The launcher, if submitit is installed.

    Raises:
        ConfigError: it is not.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise missing_package("slurm", error) from None
    return SlurmLauncher(settings)


class _Job:
    """A job and what is heard of its unit.

    Attributes:
        is_over: whether nothing more will be heard of it.
    """

    def __init__(self, job: submitit.Job[Any], run: UnitRun, said: Path) -> None:
        self._job = job
        self.run = run
        self._said = said
        self._heard_bytes = 0
        self.is_over = False

    def listen(self, sink: Sink) -> Iterator[Finished | Lost]:
        """The results that it has told by now, and what was lost with it."""
        was_done = self._job.done()  # asked first: what it said before its end is all there then
        for message in self._new():
            if finished := self.run.hear(message, sink, alone=False):
                yield finished
        if was_done:
            self.is_over = True
            if (
                self.run.left
                and not self._gave_up()
                and (lost := self.run.lost(self._how_it_ended(), tries_again=True))
            ):
                yield lost
        elif self.run.seconds_left == 0:
            self.is_over = True
            self.cancel()
            if lost := self.run.lost(None, tries_again=False):
                yield lost

    def cancel(self) -> None:
        _cancel(self._job)

    def _new(self) -> Iterator[Message]:
        """The messages that have been written since the last look; one that is being written waits for the next."""
        with self._said.open("rb") as file:
            file.seek(self._heard_bytes)
            with contextlib.suppress(EOFError, pickle.UnpicklingError):
                while True:
                    message = pickle.load(file)
                    self._heard_bytes = file.tell()
                    yield message

    def _gave_up(self) -> bool:
        """Whether it ended in good order, with cells left: its device refuses everything."""
        return self._job.exception() is None

    def _how_it_ended(self) -> str:
        return f"its job was {self._job.state}: {_last_line(self._job.exception())}"


def _cancel(job: submitit.Job[Any]) -> None:
    with contextlib.suppress(Exception):  # it may be over, or Slurm out of reach
        job.cancel(check=False)


def _last_line(error: BaseException | None) -> str:
    """What matters of a job's traceback, or of what Slurm's own commands say."""
    said = str(error).strip().splitlines()
    return said[-1] if said else "without a word"


def _planned(threads: int, request: SweepRequest) -> Plan | ConfigError:
    """What the first job does."""
    compute_with(threads)
    try:
        return plan_here(request)
    except ConfigError as error:
        return error


def _run_cells(
    threads: int,
    make_worker: bytes,
    planned_for: dict[str, Any],
    cells: Sequence[PlannedCell],
    together: bool,
    said: Path,
) -> None:
    """What the other jobs do."""
    compute_with(threads)

    def say(message: Message) -> None:
        with said.open("ab") as file:  # closed each time: only then do other nodes see it
            file.write(pickle.dumps(message))

    checked_speaker(pickle.loads(make_worker), planned_for, say).run(cells, together=together)
