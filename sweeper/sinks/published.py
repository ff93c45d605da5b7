"""Published figures beside the measured ones: a line a figure in the terminal, all numbers in `reported.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sweeper.config import parse
from sweeper.published.lookup import compare_with_published
from sweeper.published.page import print_reproductions
from sweeper.published.publication import Publication
from sweeper.records.cell import CellRecord
from sweeper.reports.terminal import output_console, say
from sweeper.sinks.sink import Sink


class PublishedSink(Sink):
    """Compares once the sweep is over: in the store, where the cells of an earlier run lie too.

    Args:
        reported: what was published, as plain data.

    Raises:
        ConfigError: it holds no published figures.
    """

    def __init__(self, reported: dict[str, Any]) -> None:
        self._publication: Publication = parse(Publication, reported, "reported")

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        compared = compare_with_published(self._publication, self.swept)
        path = compared.write(self.plan.folder)
        out = output_console()
        print_reproductions(compared, out)
        say(out, f"every number: {path}")
