"""What every launcher offers: units of work go in, records come out."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from sweeper.environment import environment
from sweeper.models.weights import WeightsKey
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import Plan, PlannedCell, make_plan
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.sinks.sink import Sink


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A reference with its candidates: what one worker should run in one go, so that the reference runs once.

    Attributes:
        reference_id: of the reference that all cells name.
        cells: the candidates, in the order of the plan; at least one.
        risky: ids of cells that ended the processes which ran them: each is to be run in a process of its own.
        careful: whether a process ended while it ran this unit: cells are to share no run, so that it is known which
            one does it.
    """

    reference_id: str
    cells: tuple[PlannedCell, ...]
    risky: frozenset[str] = frozenset()
    careful: bool = False


class Work(Protocol):
    """The units that are left. Several processes may share them: each takes what it can run next."""

    def take(self, like: Unit | None = None, beside: Sequence[Unit] = ()) -> Unit | None:
        """A unit that is to be run here, or None: nothing is left, or another process runs all that is.

        Args:
            like: what the same worker ran last; a unit that reads the same weights comes first.
            beside: what other workers run: a unit that reads other weights than theirs comes next.
        """


class Finished(NamedTuple):
    """A cell that has run, whatever came of it. Nothing is on disk yet."""

    record: CellRecord
    modules: Sequence[ModuleRecord]


class Lost(NamedTuple):
    """A cell that has no record because its worker did not live to make one.

    Attributes:
        began: when it began; None where it did not get that far.
    """

    planned: PlannedCell
    reason: str
    began: datetime | None = None


ENDED = "the process that ran it ended"
"""How the reason of a cell begins that ended its worker."""


class Worker(Protocol):
    """What runs cells, one after another, and keeps what consecutive ones share: `sweeper.sweep.runner.Runner`.

    Attributes:
        usable: whether another cell can run in this process; false once its device refuses everything.
    """

    usable: bool

    def run(
        self, planned: PlannedCell, following: Sequence[PlannedCell] = ()
    ) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """Runs one cell to its record; whatever goes wrong is in the record.

        Args:
            following: cells that this worker will be given next: what they share may be run with this one. None where
                a cell may end its process, or take too long: it has to be known which.
        """


MakeWorker = Callable[[Sink], Worker]
"""Makes a worker that tells a sink its lines and how many texts have run. It can be pickled, and imports what a worker
needs only when it is called: a launcher may call it in other processes, once in each."""


class Launcher(Protocol):
    """Who runs the cells of a plan: this process, one process a GPU, a cluster."""

    def plan(self, request: SweepRequest) -> Plan:
        """Plans the sweep where it will run: that environment is part of every id."""

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished | Lost]:
        """Runs all cells that it can take and yields each as it finishes, in whatever order.

        The caller stores what it gets before it asks for the next, and closes the generator where it stops early: what
        still runs ends then.

        Args:
            work: gives what is to be run, a unit at a time.
            make_worker: makes what runs it.
            sink: is told of every cell that starts, and what workers have to say.
        """

    def close(self) -> None:
        """Lets go of what was started for the sweep, whether or not anything was launched."""


def plan_here(request: SweepRequest) -> Plan:
    """Plans a sweep that runs on this machine."""
    return make_plan(request, environment(request.device))


def units_of(cells: Iterable[PlannedCell]) -> list[Unit]:
    """The units of a plan's cells: all that name one reference, in the order of the plan."""
    candidates: dict[str, list[PlannedCell]] = {}
    for planned in cells:
        candidates.setdefault(planned.reference_id, []).append(planned)
    return [Unit(reference_id=reference_id, cells=tuple(found)) for reference_id, found in candidates.items()]


def weights_of(unit: Unit) -> Hashable:
    """What a unit's candidates read from files: units with the same are best run by one worker."""
    return frozenset(WeightsKey.of(planned.cell).read for planned in unit.cells)
