"""What every launcher offers: units of work go in, records come out."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.sinks.sink import Sink


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A reference with its candidates: what one worker should run in one go, so that the reference runs once.

    Attributes:
        reference_id: of the reference that all cells name.
        cells: the candidates, in the order of the plan; at least one.
    """

    reference_id: str
    cells: tuple[PlannedCell, ...]


class Finished(NamedTuple):
    """A cell that has run, whatever came of it. Nothing is on disk yet."""

    record: CellRecord
    modules: Sequence[ModuleRecord]


class Worker(Protocol):
    """What runs cells, one after another, and keeps what consecutive ones share: `sweeper.sweep.runner.Runner`."""

    def run(self, planned: PlannedCell) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """Runs one cell to its record; whatever goes wrong is in the record."""


MakeWorker = Callable[[Sink], Worker]
"""Makes a worker that tells a sink its lines and how many texts have run. It can be pickled, and imports what a worker
needs only when it is called: a launcher may call it in other processes, once in each."""


class Launcher(Protocol):
    """Who runs the cells of a plan: this process, one process a GPU, a cluster."""

    def launch(self, units: Sequence[Unit], make_worker: MakeWorker, sink: Sink) -> Generator[Finished]:
        """Runs all cells and yields each as it finishes, in whatever order.

        The caller stores what it gets before it asks for the next, and closes the generator where it stops early: what
        still runs ends then.

        Args:
            units: what is to be run.
            make_worker: makes what runs it.
            sink: is told of every cell that starts, and what workers have to say.
        """


def units_of(cells: Iterable[PlannedCell]) -> list[Unit]:
    """The units of a plan's cells: runs of cells that name one reference, in the order of the plan."""
    runs = itertools.groupby(cells, key=lambda planned: planned.reference_id)
    return [Unit(reference_id=reference_id, cells=tuple(run)) for reference_id, run in runs]
