"""Where a sweep's results are shown. Sinks derive everything from the records; none of them is the source of truth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan
    from sweeper.records.cell import CellRecord, ModuleRecord


class Sink(Protocol):
    """What every sink offers. The calls come from one thread, in this order; a finished cell is on disk already.

    Attributes:
        name: what it shows, in a message that it cannot.
    """

    name: str

    def sweep_started(self, plan: Plan) -> None:
        """Called once, before the first cell."""

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        """Called after every attempt, also a failed or unsupported one; not for cells that an earlier run finished."""

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        """Called once, with the records of all cells, also of those that an earlier run finished."""


class AllSinks:
    """Tells every sink. One that fails does not keep the others from being told: it is told no more, and that is said.

    Args:
        sinks: in the order in which they are told.
        say: takes a line.

    Attributes:
        failed: whether any did.
    """

    name = "all of them"

    def __init__(self, sinks: Sequence[Sink], say: Callable[[str], None]) -> None:
        self._sinks = list(sinks)
        self._say = say
        self.failed = False

    def sweep_started(self, plan: Plan) -> None:
        self._tell(lambda sink: sink.sweep_started(plan))

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self._tell(lambda sink: sink.cell_finished(record, modules))

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        self._tell(lambda sink: sink.sweep_finished(records))

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                call(sink)
            except Exception as error:
                self.failed = True
                self._sinks.remove(sink)
                reason = str(error).partition("\n")[0]
                self._say(f"{sink.name}: {type(error).__name__}: {reason}; the files of the cells are complete")
