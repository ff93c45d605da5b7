"""Published figures beside the measured ones: a line a figure in the terminal, all numbers in `reported.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sweeper.published.lookup import compare_with_published
from sweeper.published.publication import Publication
from sweeper.published.table import print_reproductions
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.sweep import Sweep
from sweeper.reports.tables import output_console

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan


class PublishedSink:
    """Compares once the sweep is over.

    Args:
        publication: what was published.
        out: for the table.
    """

    name = "published figures"

    def __init__(self, publication: Publication, out: Console | None = None) -> None:
        self._publication = publication
        self._out = out or output_console()
        self._plan: Plan | None = None

    def sweep_started(self, plan: Plan) -> None:
        self._plan = plan

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        """Nothing yet: figures are looked up in the store, where the cells of an earlier run lie too."""

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        assert self._plan is not None, "sweep_started comes first"
        compared = compare_with_published(self._publication, Sweep.read(self._plan.folder))
        path = compared.write(self._plan.folder)
        print_reproductions(compared, self._out)
        self._out.print(Text(f"every number: {path}"), soft_wrap=True)
