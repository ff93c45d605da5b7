"""All sinks are told everything; one that fails is said and left out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sweeper.records.cell import CellRecord
from sweeper.records.sweep import Sweep
from sweeper.sinks.registry import SINKS, make_sinks
from sweeper.sinks.sink import AllSinks, Sink
from tests.composing import request_of
from tests.sinks.records import SmallPlan
from tests.sinks.sweeps import report_1

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


class Reading(Sink):
    """Notes what it reads when a sweep is over."""

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        self.read = self.swept


def test_sinks_that_are_told_together_read_a_sweep_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = report_1(tmp_path)
    reads: list[Path] = []
    original = Sweep.read
    monkeypatch.setattr(Sweep, "read", lambda folder: (reads.append(folder), original(folder))[1])
    first, second = Reading(), Reading()
    told = AllSinks({"first": first, "deaf": Sink(), "second": second})
    told.sweep_started(SmallPlan(tmp_path, ()))  # type: ignore[arg-type]
    assert not reads
    told.sweep_finished(sweep.records)
    assert reads == [tmp_path]
    assert [record.cell_id for record in first.read.records] == [record.cell_id for record in sweep.records]
    assert second.read is first.read
    told.sweep_finished(sweep.records)
    assert len(reads) == 2  # what lies there may be another
    assert second.read is not first.swept
