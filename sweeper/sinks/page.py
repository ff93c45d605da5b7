"""`index.html`, written when a sweep ends."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import PAGE_FILE, write_whole
from sweeper.records.sweep import Sweep
from sweeper.reports.page.page import CellContent, content, page
from sweeper.sinks.sink import Sink


class PageSink(Sink):
    """Writes the page once the sweep is over, from the store, where the cells of an earlier run lie too.

    What the page shows of a cell is made when the cell is finished: to read its modules again would take most of the
    page's time.
    """

    def __init__(self) -> None:
        self._contents: dict[tuple[str, str], CellContent] = {}

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self._contents[record.cell_id, record.attempt] = content(record, modules)

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        write_whole(self.plan.folder / PAGE_FILE, page(Sweep.read(self.plan.folder), self._contents))
