"""`index.html`, written when a sweep ends."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import PAGE_FILE
from sweeper.records.sweep import Sweep
from sweeper.reports.page.page import CellContent, content, page
from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan


class PageSink(Sink):
    """Writes the page once the sweep is over, from the store, where the cells of an earlier run lie too.

    What the page shows of a cell is made when the cell is finished: to read its modules again would take most of the
    page's time.
    """

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._contents: dict[tuple[str, str], CellContent] = {}

    def sweep_started(self, plan: Plan) -> None:
        self._plan = plan

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self._contents[record.cell_id, record.attempt] = content(record, modules)

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        assert self._plan is not None, "sweep_started comes first"
        path = self._plan.folder / PAGE_FILE
        temporary = path.with_name(f".{PAGE_FILE}.{os.getpid()}")
        temporary.write_text(page(Sweep.read(self._plan.folder), self._contents), encoding="utf-8")
        temporary.replace(path)
