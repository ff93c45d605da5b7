"""Where a sweep's results are shown. Sinks derive everything from the records; none of them is the source of truth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from sweeper.plan import Plan
    from sweeper.results import CellRecord, ModuleRecord


class Sink(Protocol):
    """What every sink offers. The calls come from one thread, in this order; a finished cell is on disk already."""

    def sweep_started(self, plan: Plan) -> None:
        """Called once, before the first cell."""

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        """Called after every attempt, also a failed or unsupported one; not for cells that an earlier run finished."""

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        """Called once, with the records of all cells, also of those that an earlier run finished."""
