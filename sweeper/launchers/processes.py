"""Workers in processes of their own: one (`isolation=process`), or one a GPU (`launcher=gpus`).

A cell that ends its worker, or does not end, costs itself: it is lost with its reason, and a new worker goes on.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from multiprocessing.connection import wait

from sweeper.launchers.launcher import ENDED, Finished, Lost, MakeWorker, Unit, Work, plan_here
from sweeper.launchers.messages import Message, Said, Started, TextsDone
from sweeper.launchers.worker_process import WorkerProcess, from_outside
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan, PlannedCell
from sweeper.sinks.sink import Sink

MOST_TRIES = 2
"""How often a cell is begun whose worker was killed from outside, or ended before it began any."""


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
                slot.start()
        return plan_here(request)

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished | Lost]:
        try:
            while True:
                for slot in self._slots:
                    beside = [other.unit for other in self._slots if other.unit is not None and other.is_busy]
                    if not slot.is_busy and (unit := work.take(slot.unit, beside)):
                        slot.give(unit, make_worker)
                busy = [slot for slot in self._slots if slot.is_busy]
                if not busy:
                    return
                for slot in _next_to_speak(busy):
                    for said in slot.listen(make_worker):
                        if isinstance(said, Finished | Lost):
                            yield said
                        else:
                            self._tell(sink, slot, said)
        finally:
            self.close()

    def close(self) -> None:
        for slot in self._slots:
            slot.close()

    def _tell(self, sink: Sink, slot: _Slot, said: Message) -> None:
        match said:
            case Started(cell_id):
                sink.cell_started(slot.cell(cell_id))
            case Said(line):
                sink.said(line)
            case TextsDone(done, texts) if len(self._slots) == 1:  # of several workers it would jump
                sink.texts_done(done, texts)


class _Slot:
    """The place of one worker: who is there now, and what it has to do.

    Attributes:
        unit: what it was given last.
    """

    def __init__(self, environment: Mapping[str, str], cell_timeout_s: float | None) -> None:
        self._environment = environment
        self._timeout_s = cell_timeout_s
        self._process: WorkerProcess | None = None
        self._left: list[PlannedCell] = []
        self._running: str | None = None
        self._since_s = 0.0
        self._tries: Counter[str] = Counter()
        self.unit: Unit | None = None

    @property
    def is_busy(self) -> bool:
        return bool(self._left)

    @property
    def seconds_left(self) -> float | None:
        """Until the running cell has taken too long; None where nothing runs, or it may take for ever."""
        if self._timeout_s is None or self._running is None:
            return None
        return max(0.0, self._since_s + self._timeout_s - time.monotonic())

    @property
    def process(self) -> WorkerProcess:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Starts a worker, if none is there."""
        if self._process is None:
            self._process = WorkerProcess(self._environment)

    def give(self, unit: Unit, make_worker: MakeWorker) -> None:
        self.unit = unit
        self._left = list(unit.cells)
        self._go_on(make_worker)

    def cell(self, cell_id: str) -> PlannedCell:
        return next(planned for planned in self._left if planned.cell_id == cell_id)

    def listen(self, make_worker: MakeWorker) -> Iterator[Message | Lost]:
        """What the worker has said by now, and what was lost with it."""
        try:
            for said in self.process.heard():
                if isinstance(said, Started):
                    self._running, self._since_s = said.cell_id, time.monotonic()
                yield said
                if isinstance(said, Finished):
                    self._left.remove(self.cell(said.record.cell_id))
                    self._running = None
        except EOFError:
            yield from self._after(self.process.ended(), make_worker)
        if self.is_busy and self.seconds_left == 0:
            self.process.kill()
            yield from self._after(None, make_worker)

    def close(self) -> None:
        """Ends the worker, whatever it is at."""
        if self._process is not None:
            self._process.kill()
        self._process, self._left, self._running, self.unit = None, [], None, None

    def _after(self, ended: str | None, make_worker: MakeWorker) -> Iterator[Lost]:
        """Starts a new worker for what is left, without the cell that the old one was lost to.

        Args:
            ended: how the old one ended; None where its cell took too long.
        """
        self._process = None
        if not self._left:
            return
        cell = self.cell(self._running) if self._running is not None else self._left[0]
        self._tries[cell.cell_id] += 1
        began, self._running = self._running is not None, None
        tries_again = ended is not None and (not began or from_outside(ended))
        if not tries_again or self._tries[cell.cell_id] == MOST_TRIES:
            yield Lost(cell, self._reason(cell, ended))
            self._left.remove(cell)
        self._go_on(make_worker)

    def _reason(self, cell: PlannedCell, ended: str | None) -> str:
        if ended is None:
            return f"took longer than cell_timeout_s={self._timeout_s:g}"
        times = " twice" if self._tries[cell.cell_id] > 1 else ""
        memory = ", as where memory runs out" if from_outside(ended) else ""
        return f"{ENDED}{times}: {ended}{memory}"

    def _go_on(self, make_worker: MakeWorker) -> None:
        if self._left:
            self.start()
            self.process.run(make_worker, self._left)


def _next_to_speak(busy: Sequence[_Slot]) -> list[_Slot]:
    """Waits until one of them has said something, ended, or taken too long."""
    limits = [slot.seconds_left for slot in busy if slot.seconds_left is not None]
    ready = wait([slot.process.ears for slot in busy], timeout=min(limits, default=None))
    return [slot for slot in busy if slot.process.ears in ready or slot.seconds_left == 0]
