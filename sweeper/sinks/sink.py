"""What every sink offers, and how all of them are told."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from sweeper.records.sweep import Sweep

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan, PlannedCell
    from sweeper.records.cell import CellRecord, ModuleRecord


class Sink:
    """Somebody who is told how a sweep goes. A sink says what it wants to hear by overriding; the rest does nothing.

    The calls come from one thread, in the order of these methods. Sinks derive everything from the records; none of
    them is the source of truth. A finished cell is on disk before they hear of it.

    Attributes:
        plan: what was planned, once the sweep has started.
    """

    plan: Plan
    _read_together: Callable[[], Sweep] | None = None

    @property
    def swept(self) -> Sweep:
        """The sweep as it lies in its folder, once it is over. Sinks that are told together read it once."""
        return Sweep.read(self.plan.folder) if self._read_together is None else self._read_together()

    def sweep_started(self, plan: Plan) -> None:
        """Called once, before any cell. Keeps the plan."""
        self.plan = plan

    def cell_skipped(self, record: CellRecord) -> None:
        """Called for every cell that an earlier run finished."""

    def cell_started(self, planned: PlannedCell) -> None:
        """Called before every attempt."""

    def texts_done(self, done: int, texts: int) -> None:
        """Called while a cell or its reference runs: how many texts of how many have run."""

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        """Called after every attempt, also a failed or unsupported one; not for cells that were skipped."""

    def said(self, line: str) -> None:
        """Called at any time, with a line for the user: fetching, dequantising, a sink that failed."""

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        """Called at the end, with the records of all cells in the order of the plan, skipped ones too."""

    def interrupted(self, records: Sequence[CellRecord]) -> None:
        """Called in place of `sweep_finished` where the sweep stopped early, with the records that there are."""


class AllSinks(Sink):
    """Tells every sink. One that fails does not keep the others from being told: it is told no more, and that is said.

    Args:
        sinks: by name, in the order in which they are told.

    Attributes:
        failed: whether any did.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self._all = tuple(sinks.values())
        self._told = dict(sinks)
        self.failed = False

    def sweep_started(self, plan: Plan) -> None:
        super().sweep_started(plan)
        self._tell(lambda sink: sink.sweep_started(plan))

    def cell_skipped(self, record: CellRecord) -> None:
        self._tell(lambda sink: sink.cell_skipped(record))

    def cell_started(self, planned: PlannedCell) -> None:
        self._tell(lambda sink: sink.cell_started(planned))

    def texts_done(self, done: int, texts: int) -> None:
        self._tell(lambda sink: sink.texts_done(done, texts))

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self._tell(lambda sink: sink.cell_finished(record, modules))

    def said(self, line: str) -> None:
        for sink in self._all:  # also one that failed at something else: it may be the terminal
            with contextlib.suppress(Exception):
                sink.said(line)

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        read = functools.cache(lambda: Sweep.read(self.plan.folder))
        for sink in self._all:
            sink._read_together = read
        try:
            self._tell(lambda sink: sink.sweep_finished(records))
        finally:
            for sink in self._all:
                sink._read_together = None

    def interrupted(self, records: Sequence[CellRecord]) -> None:
        self._tell(lambda sink: sink.interrupted(records))

    def _tell(self, call: Callable[[Sink], None]) -> None:
        for name, sink in list(self._told.items()):
            try:
                call(sink)
            except Exception as error:
                self.failed = True
                del self._told[name]
                reason = str(error).partition("\n")[0]
                self.said(f"{name}: {type(error).__name__}: {reason}; it is told no more of this sweep")
