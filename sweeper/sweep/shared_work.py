"""What is left of a sweep, shared with every other process that works in its folder."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from typing import Literal

from sweeper.errors import DamagedError
from sweeper.launchers.launcher import ENDED, Unit, units_of, weights_of
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import CellRecord, ModuleRecord, Status
from sweeper.records.store import Store
from sweeper.sinks.sink import Sink
from sweeper.sweep.claims import Claims

LOOK_AGAIN_S = 0.5  # where all that is left is run by others
ENDS_PROCESSES = 2  # so many died of a cell: the next one runs it in a process of its own


class SharedWork(Sink):
    """Hands out units that nobody else runs, and finds what others have run. It is told which cells start and end.

    Args:
        cells: what had no result when this process began, in the order of the plan.
        store: of the sweep.
        judged: as in `Store.finished`.
        found: takes every record that another process has made.
    """

    def __init__(
        self,
        cells: Sequence[PlannedCell],
        store: Store,
        *,
        judged: bool | Literal["full"],
        found: Callable[[CellRecord], None],
    ) -> None:
        self._store = store
        self._judged = judged
        self._found = found
        self._claims = Claims(store.folder)
        self._waiting = {unit.reference_id: unit for unit in units_of(cells)}
        self._read_by: dict[str, Hashable] = {}
        self._running: dict[str, set[str]] = {}  # reference id -> cells that are to end
        self._reference_ids = {planned.cell_id: planned.reference_id for planned in cells}
        earlier = {planned.cell_id: self._read(planned.cell_id) for planned in cells}
        self._earlier = {cell_id: record for cell_id, record in earlier.items() if record is not None}

    @property
    def left(self) -> bool:
        """Whether anything has neither been handed out nor been found."""
        return bool(self._waiting)

    def take(self, like: Unit | None = None, beside: Sequence[Unit] = ()) -> Unit | None:
        """A unit that nobody else runs, or None: another process runs all that is left, or nothing is.

        Args:
            like: what its worker ran last; a unit that reads the same weights comes first.
            beside: what other workers run: a unit that reads other weights than theirs comes next.
        """
        for unit in self._best_first(like, beside):
            claim = self._claims.claim(unit.reference_id)
            if claim is None:
                continue
            del self._waiting[unit.reference_id]
            cells = self._without_result(unit)
            if not cells:
                self._claims.release(unit.reference_id)
                continue
            self._running[unit.reference_id] = {planned.cell_id for planned in cells}
            risky = {cell_id for cell_id, deaths in claim.deaths.items() if deaths >= ENDS_PROCESSES}
            risky |= {cell_id for cell_id, record in self._earlier.items() if (record.reason or "").startswith(ENDED)}
            risky &= self._running[unit.reference_id]
            return replace(unit, cells=cells, risky=frozenset(risky), careful=bool(risky or claim.deaths))
        return None

    def wait(self, say: Callable[[str], None]) -> None:
        """Waits until something of what others run is there to be taken, or all of it has a result."""
        said = False
        while self._waiting and not self._any_free():
            for unit in list(self._waiting.values()):
                cells = self._without_result(unit)
                self._waiting[unit.reference_id] = replace(unit, cells=cells)
                if not cells:
                    del self._waiting[unit.reference_id]
            if self._waiting and not said:
                count = sum(len(unit.cells) for unit in self._waiting.values())
                say(f"other processes run the {count} cells that are left; waiting for them")
                said = True
            if self._waiting:
                time.sleep(LOOK_AGAIN_S)

    def cell_started(self, planned: PlannedCell) -> None:
        if claim := self._claims.held(planned.reference_id):
            claim.running(planned.cell_id)

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        key = self._reference_ids[record.cell_id]
        if claim := self._claims.held(key):
            claim.ran(record.cell_id)
        self._running[key].discard(record.cell_id)
        if not self._running[key]:
            self._claims.release(key)

    def close(self, *, finished: bool) -> None:
        """Lets go of all that is claimed."""
        self._claims.close(finished=finished)

    def _best_first(self, like: Unit | None, beside: Sequence[Unit]) -> list[Unit]:
        """The waiting units, best first: in the order of the plan where nothing else is asked for."""
        if like is None and not beside:
            return list(self._waiting.values())
        here, taken = like and self._weights(like), {self._weights(unit) for unit in beside}
        weights = {reference_id: self._weights(unit) for reference_id, unit in self._waiting.items()}
        return sorted(
            self._waiting.values(),
            key=lambda unit: (weights[unit.reference_id] != here, weights[unit.reference_id] in taken),
        )

    def _weights(self, unit: Unit) -> Hashable:
        """The weights (`weights_of`) of the unit as it was before others ran some of it."""
        if unit.reference_id not in self._read_by:
            self._read_by[unit.reference_id] = weights_of(unit)
        return self._read_by[unit.reference_id]

    def _any_free(self) -> bool:
        for key in self._waiting:
            if self._claims.claim(key):
                self._claims.release(key)
                return True
        return False

    def _without_result(self, unit: Unit) -> tuple[PlannedCell, ...]:
        """The cells of a unit that nobody has run since this process began; tells of the others."""
        left = []
        for planned in unit.cells:
            record = self._read(planned.cell_id)
            if record is not None and self._is_result(record):
                self._found(record)
            else:
                left.append(planned)
        return tuple(left)

    def _is_result(self, record: CellRecord) -> bool:
        """Whether a record is one that this process need not make: finished, or failed just now."""
        earlier = self._earlier.get(record.cell_id)
        failed_now = record.status is Status.FAILED and (earlier is None or earlier.attempt != record.attempt)
        return failed_now or self._store.need_not_run(record, judged=self._judged)

    def _read(self, cell_id: str) -> CellRecord | None:
        """None too where what lies there cannot be read: it is run again, and replaced."""
        with contextlib.suppress(DamagedError, OSError):
            return self._store.read(cell_id)
        return None
