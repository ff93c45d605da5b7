"""`index.html`, written when a sweep ends."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import PAGE_FILE, write_whole
from sweeper.reports.answer import worst_first
from sweeper.reports.page.data import MOST_IN_FULL
from sweeper.reports.page.page import page
from sweeper.sinks.sink import Sink


class PageSink(Sink):
    """Writes the page once the sweep is over, from the store, where the cells of an earlier run lie too.

    The modules of the worst cells, which the page shows, are kept: to read them again would take most of its time.
    """

    def __init__(self) -> None:
        self._worst: dict[tuple[str, str], tuple[CellRecord, Sequence[ModuleRecord]]] = {}

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self._worst[record.cell_id, record.attempt] = record, modules
        if len(self._worst) > MOST_IN_FULL:
            out = worst_first([record for record, _ in self._worst.values()])[-1]
            del self._worst[out.cell_id, out.attempt]

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        known = {key: modules for key, (_, modules) in self._worst.items()}
        write_whole(self.plan.folder / PAGE_FILE, page(self.swept, known))
