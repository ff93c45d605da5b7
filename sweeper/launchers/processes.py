"""Workers in processes of their own: one (`isolation=process`), or one a GPU (`launcher=gpus`).

A cell that ends its worker, or does not end, costs itself: it is lost with its reason, and a new worker goes on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import wait

from sweeper.launchers.launcher import Finished, Lost, MakeWorker, Unit, Work, plan_here
from sweeper.launchers.unit_run import UnitRun
from sweeper.launchers.worker_process import WorkerProcess, end_early, from_outside, worker_process
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan
from sweeper.sinks.sink import Sink


class ProcessLauncher:
    """Runs units in processes that live on from unit to unit.

    Args:
        places: a worker each: the environment variables that it gets.
        cell_timeout_s: how long a cell may take, its reference and loading included; None is for ever.
    """

    def __init__(self, places: Sequence[Mapping[str, str]], cell_timeout_s: float | None = None) -> None:
        self._slots = [_Slot(environment, cell_timeout_s) for environment in places]

    def plan(self, request: SweepRequest) -> Plan:
        """Plans while the workers start."""
        if not request.settings.dry_run:
            for slot in self._slots:
                slot.start(device=request.device)
        end_early()
        return plan_here(request)

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished | Lost]:
        try:
            while True:
                for slot in self._slots:
                    self._keep_busy(slot, work, make_worker)
                busy = [slot for slot in self._slots if slot.is_busy]
                if not busy:
                    return
                for slot in _next_to_speak(busy):
                    for result in slot.listen(make_worker, sink, alone=len(self._slots) == 1):
                        self._keep_busy(slot, work, make_worker)  # first: storing takes a tenth of a second
                        yield result
        finally:
            self.close()

    def _keep_busy(self, slot: _Slot, work: Work, make_worker: MakeWorker) -> None:
        """Gives a worker that has nothing to do the next unit, if there is one."""
        beside = [other.run.unit for other in self._slots if other.run is not None and other.is_busy]
        if not slot.is_busy and (unit := work.take(slot.run.unit if slot.run else None, beside)):
            slot.give(unit, make_worker)

    def close(self) -> None:
        for slot in self._slots:
            slot.stop()  # all, before any is waited for: a driver takes a second to let go of a GPU's memory
        for slot in self._slots:
            slot.close()


class _Slot:
    """The place of one worker: who is there now, and what it has to do.

    Attributes:
        run: of the unit that it was given last.
    """

    def __init__(self, environment: Mapping[str, str], cell_timeout_s: float | None) -> None:
        self._environment = environment
        self._timeout_s = cell_timeout_s
        self._process: WorkerProcess | None = None
        self.run: UnitRun | None = None

    @property
    def is_busy(self) -> bool:
        return self.run is not None and bool(self.run.left)

    @property
    def process(self) -> WorkerProcess:
        assert self._process is not None
        return self._process

    @property
    def seconds_left(self) -> float | None:
        return self.run.seconds_left if self.run is not None else None

    def start(self, device: str | None = None) -> None:
        """Starts a worker, if none is there; `device` as for `worker_process`."""
        if self._process is None:
            self._process = worker_process(self._environment, device)

    def give(self, unit: Unit, make_worker: MakeWorker) -> None:
        self.run = UnitRun(unit, self._timeout_s)
        self._go_on(make_worker)

    def listen(self, make_worker: MakeWorker, sink: Sink, *, alone: bool) -> Iterator[Finished | Lost]:
        """The results that the worker has told by now, and what was lost with it; a new one goes on."""
        assert self.run is not None
        try:
            for said in self.process.heard():
                if finished := self.run.hear(said, sink, alone=alone):
                    yield finished
            if self.run.seconds_left != 0:
                return
            self.process.kill()
            lost = self.run.lost(None, tries_again=False)
        except EOFError:
            ended = self.process.ended()
            outside = from_outside(ended)
            memory = ", as where memory runs out" if outside else ""
            lost = self.run.lost(f"{ended}{memory}", tries_again=outside)
        self._process = None
        self._go_on(make_worker)
        if lost:
            yield lost

    def stop(self) -> None:
        """Kills the worker; `close` waits until it has ended."""
        if self._process is not None:
            self._process.stop()

    def close(self) -> None:
        """Ends the worker, whatever it is at."""
        if self._process is not None:
            self._process.kill()
        self._process, self.run = None, None

    def _go_on(self, make_worker: MakeWorker) -> None:
        if self.is_busy:
            assert self.run is not None
            self.start()
            self.process.run(make_worker, self.run.left, together=self.run.together)


def _next_to_speak(busy: Sequence[_Slot]) -> list[_Slot]:
    """Waits until one of them has said something, ended, or taken too long."""
    limits = [slot.seconds_left for slot in busy if slot.seconds_left is not None]
    ready = wait([slot.process.ears for slot in busy], timeout=min(limits, default=None))
    return [slot for slot in busy if slot.process.ears in ready or slot.seconds_left == 0]
