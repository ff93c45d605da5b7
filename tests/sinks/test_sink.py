"""All sinks are told everything; one that fails is said and left out."""

from __future__ import annotations

import inspect
from typing import Any

from sweeper.sinks.registry import SINKS, make_sinks
from sweeper.sinks.sink import AllSinks, Sink
from tests.composing import request_of

CALLS = [name for name, _ in inspect.getmembers(Sink, inspect.isfunction) if not name.startswith("_")]


def arguments(name: str) -> list[str]:
    """Arguments, as many as the call takes."""
    return ["x"] * (len(inspect.signature(getattr(Sink, name)).parameters) - 1)


class Listening(Sink):
    """Notes every call; fails at one of them."""

    def __init__(self, fails_at: str | None = None) -> None:
        self.heard: list[str] = []
        self.lines: list[str] = []
        for name in CALLS:
            setattr(self, name, self._hears(name, fails_at))

    def _hears(self, name: str, fails_at: str | None) -> Any:
        def hear(*given: str) -> None:
            self.heard.append(name)
            if name == "said":
                self.lines += given
            if name == fails_at:
                raise RuntimeError("boom\nand more")

        return hear


def test_every_call_of_a_sink_reaches_every_sink_and_does_nothing_by_itself() -> None:
    first, second = Listening(), Listening()
    told = AllSinks({"first": first, "second": second, "deaf": Sink()})
    for name in CALLS:
        getattr(told, name)(*arguments(name))
    assert first.heard == second.heard == CALLS
    assert not told.failed


def test_a_sink_that_fails_is_said_and_told_no_more() -> None:
    failing, other = Listening(fails_at="sweep_started"), Listening()
    told = AllSinks({"failing": failing, "other": other})
    told.sweep_started("x")  # type: ignore[arg-type]
    told.texts_done(1, 2)
    assert told.failed
    assert other.heard == ["said", "sweep_started", "texts_done"]
    assert failing.heard == ["sweep_started", "said"]  # what is said still reaches it: it may be the terminal
    assert other.lines == failing.lines == ["failing: RuntimeError: boom; it is told no more of this sweep"]


def test_a_request_gets_the_sinks_that_it_asks_for() -> None:
    every = list(SINKS)
    assert list(make_sinks(request_of("checkpoint=tiny_llama", "reported=public_issues"))) == every
    few = make_sinks(request_of("checkpoint=tiny_llama", "wandb.mode=disabled"))
    assert list(few) == [name for name in every if name not in ("wandb", "published figures")]
