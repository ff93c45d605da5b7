"""How far a unit has come in another process, as far as has been heard, and what is lost with one that ends."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime

from sweeper.launchers.launcher import ENDED, Finished, Lost, Unit
from sweeper.launchers.messages import CannotStart, Message, Said, Started, TextsDone
from sweeper.planning.plan import PlannedCell
from sweeper.sinks.sink import Sink

MOST_TRIES = 2
"""How often a cell is begun whose worker was ended from outside, or ended before it began any."""


class UnitRun:
    """A unit that workers run, one after another where they end.

    Args:
        cell_timeout_s: how long a cell may take, its reference and loading included; None is for ever.

    Attributes:
        unit: as it was given.
        left: the cells that have not come to their end, in order.
        together: whether what is left may share what it runs. Not where it has to be known which cell ends a worker,
            because one has, or which one takes too long.
    """

    def __init__(self, unit: Unit, cell_timeout_s: float | None) -> None:
        self.unit = unit
        self.left = list(unit.cells)
        self.together = cell_timeout_s is None and not unit.careful and len(unit.cells) > 1
        self._timeout_s = cell_timeout_s
        self._running: PlannedCell | None = None
        self._since_s = 0.0
        self._began: datetime | None = None
        self._tries: Counter[str] = Counter()
        self._why = ""

    @property
    def seconds_left(self) -> float | None:
        """The time until the running cell has taken too long; None where nothing runs, or it may take for ever."""
        if self._timeout_s is None or self._running is None:
            return None
        return max(0.0, self._since_s + self._timeout_s - time.monotonic())

    def hear(self, said: Message, sink: Sink, *, alone: bool) -> Finished | None:
        """Takes a message; returns it where it is a result that had not been heard of.

        Args:
            alone: whether no other worker runs beside this one: progress of several would jump.
        """
        match said:
            case Started(cell_id):
                self._running, self._since_s = self._cell(cell_id), time.monotonic()
                self._began = datetime.now(UTC)
                if self._running is not None:
                    sink.cell_started(self._running)
            case Said(line):
                sink.said(line)
            case CannotStart(reason):
                self._why = f": {reason}"
            case TextsDone(done, texts) if alone:
                sink.texts_done(done, texts)
            case Finished(record, _):
                self._running = None
                if (cell := self._cell(record.cell_id)) is not None:
                    self.left.remove(cell)
                    return said
        return None

    def lost(self, ended: str | None, *, tries_again: bool) -> Lost | None:
        """What is lost with a worker; None where its cell is to be tried again.

        Args:
            ended: how it ended; None where its cell took too long.
            tries_again: whether that need not be the cell's own doing.
        """
        if not self.left:
            return None
        cell, began = self._running or self.left[0], self._running is not None
        was_together, self.together, self._running = self.together, False, None
        why, self._why = self._why, ""
        if was_together and began and not tries_again:
            return None  # any of them may have done it: now one after the other
        self._tries[cell.cell_id] += 1
        if ended is not None and (tries_again or not began) and self._tries[cell.cell_id] < MOST_TRIES:
            return None
        self.left.remove(cell)
        return Lost(cell, self._reason(cell, ended and f"{ended}{why}"), self._began if began else None)

    def _cell(self, cell_id: str) -> PlannedCell | None:
        """None for one that has come to its end: a worker that was started again runs it again."""
        return next((planned for planned in self.left if planned.cell_id == cell_id), None)

    def _reason(self, cell: PlannedCell, ended: str | None) -> str:
        if ended is None:
            return f"took longer than cell_timeout_s={self._timeout_s:g}"
        return f"{ENDED}{' twice' if self._tries[cell.cell_id] > 1 else ''}: {ended}"
