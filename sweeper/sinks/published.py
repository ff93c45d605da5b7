"""Published figures beside the measured ones: a line a figure in the terminal, all numbers in `reported.json`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from sweeper.config import parse
from sweeper.published.lookup import compare_with_published
from sweeper.published.page import print_reproductions
from sweeper.published.publication import Publication
from sweeper.records.cell import CellRecord
from sweeper.records.sweep import Sweep
from sweeper.reports.terminal import output_console
from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan


def make_published_sink(reported: dict[str, Any] | None) -> PublishedSink | None:
    """The sink that puts figures beside the measured ones; None where none are asked for.

    Raises:
        ConfigError: what is asked for holds no published figures.
    """
    return None if reported is None else PublishedSink(parse(Publication, reported, "reported"))


class PublishedSink(Sink):
    """Compares once the sweep is over: in the store, where the cells of an earlier run lie too.

    Args:
        publication: what was published.
        out: for the table.
    """

    def __init__(self, publication: Publication, out: Console | None = None) -> None:
        self._publication = publication
        self._out = out or output_console()
        self._plan: Plan | None = None

    def sweep_started(self, plan: Plan) -> None:
        self._plan = plan

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        assert self._plan is not None, "sweep_started comes first"
        compared = compare_with_published(self._publication, Sweep.read(self._plan.folder))
        path = compared.write(self._plan.folder)
        print_reproductions(compared, self._out)
        self._out.print(Text(f"every number: {path}"), soft_wrap=True)
