"""What a worker in another process says, pickled: over a pipe, through Ray, or into a file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sweeper.launchers.launcher import Finished, MakeWorker, Worker
from sweeper.planning.plan import PlannedCell
from sweeper.sinks.sink import Sink


class Started(NamedTuple):
    """A cell that begins now."""

    cell_id: str


class Said(NamedTuple):
    """A line for the user."""

    line: str


class TextsDone(NamedTuple):
    """How many texts of how many a cell or its reference has run."""

    done: int
    texts: int


class CannotStart(NamedTuple):
    """Why no worker could be made: the last that a process says."""

    reason: str


Message = Started | Said | TextsDone | Finished | CannotStart


class _PassesOn(Sink):
    """Stands for the sinks in a worker's process."""

    def __init__(self, say: Callable[[Message], None]) -> None:
        self._say = say

    def said(self, line: str) -> None:
        self._say(Said(line))

    def texts_done(self, done: int, texts: int) -> None:
        self._say(TextsDone(done, texts))


class Speaker:
    """Runs cells and says how that goes.

    Args:
        make_worker: is called once, for all cells.
        say: takes each message at once.
    """

    def __init__(self, make_worker: MakeWorker, say: Callable[[Message], None]) -> None:
        self._say = say
        self._worker: Worker = make_worker(_PassesOn(say))

    def run(self, cells: Sequence[PlannedCell], *, together: bool) -> bool:
        """Runs cells in their order; False, and not all of them, where this process has become of no use.

        Args:
            together: as `following` of `Worker.run`: what they share may be run with the first of them.
        """
        following = [cells[place + 1 :] if together else () for place in range(len(cells))]
        return all(map(self.run_cell, cells, following))

    def run_cell(self, planned: PlannedCell, following: Sequence[PlannedCell]) -> bool:
        """Runs one cell; False where this process has become of no use."""
        self._say(Started(planned.cell_id))
        self._say(Finished(*self._worker.run(planned, following)))
        return self._worker.usable
