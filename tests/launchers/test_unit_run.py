"""What is lost with a worker, and what its record says."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from sweeper.launchers.launcher import Lost, units_of
from sweeper.launchers.messages import Started
from sweeper.launchers.unit_run import UnitRun
from sweeper.sweep.run import _with_record
from tests.launchers.test_launchers import Listening, planned_cells


def test_a_lost_cell_began_when_it_was_heard_to() -> None:
    (planned,) = planned_cells("dtype=float32")
    run = UnitRun(units_of([planned])[0], cell_timeout_s=None)
    before = datetime.now(UTC)
    run.hear(Started(planned.cell_id), Listening(), alone=True)
    after = datetime.now(UTC)
    lost = run.lost("signal 11 (SIGSEGV)", tries_again=False)
    assert lost is not None
    assert lost.began is not None
    assert before <= lost.began <= after


def test_its_record_says_when_it_began_not_when_it_was_lost() -> None:
    (planned,) = planned_cells("dtype=float32")
    plan: Any = SimpleNamespace(environment={})
    record, _ = _with_record(Lost(planned, "took too long", datetime(2026, 1, 1, tzinfo=UTC)), plan)
    assert (record.started_at, record.reason) == ("2026-01-01T00:00:00+00:00", "took too long")
