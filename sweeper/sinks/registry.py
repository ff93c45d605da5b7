"""The sinks by name. A new one is a module beside this one and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sweeper.sinks.composed import ComposedSink
from sweeper.sinks.page import PageSink
from sweeper.sinks.published import PublishedSink
from sweeper.sinks.terminal import TerminalSink
from sweeper.sinks.wandb import make_wandb_sink

if TYPE_CHECKING:
    from sweeper.planning.grid import SweepRequest
    from sweeper.sinks.sink import Sink

SINKS: Mapping[str, Callable[[SweepRequest], Sink | None]] = {
    "composed config": lambda request: ComposedSink(request.config),
    "page": lambda _: PageSink(),
    "terminal": lambda _: TerminalSink(),
    "wandb": lambda request: make_wandb_sink(request.settings.wandb),
    "published figures": lambda request: None if request.reported is None else PublishedSink(request.reported),
}
"""Name -> what makes it of a request; None where the request does not ask for it. In the order in which they are told:
the table in the terminal comes before the published figures that are put below it."""


def make_sinks(request: SweepRequest) -> dict[str, Sink]:
    """The sinks that a request asks for.

    Raises:
        ConfigError: one of them cannot be made: a package or a login is missing, or a file is wrong.
    """
    made = ((name, make(request)) for name, make in SINKS.items())
    return {name: sink for name, sink in made if sink is not None}
