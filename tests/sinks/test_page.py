from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.reports.page.data import MOST_IN_FULL
from sweeper.reports.page.page import page
from sweeper.sinks.page import PageSink
from tests.sinks.records import SmallPlan
from tests.sinks.sweeps import many, measured, report_1, stored


@pytest.mark.parametrize("finished_now", [0, 2, 4])
def test_the_sink_writes_the_page_into_the_sweep(finished_now: int, tmp_path: Path) -> None:
    sweep = report_1(tmp_path)
    sweep = stored(tmp_path, [(measured("dddd9999"), []), *((r, sweep.modules(r.cell_id)) for r in sweep.records)])
    sink = PageSink()
    sink.sweep_started(SmallPlan(tmp_path, ()))  # type: ignore[arg-type]
    for record in sweep.records[:finished_now]:
        sink.cell_finished(record, sweep.modules(record.cell_id))
    sink.sweep_finished(sweep.records)
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == page(sweep)
    assert not list(tmp_path.glob(".index*"))


def test_it_keeps_the_modules_of_the_worst_cells_only(tmp_path: Path) -> None:
    sweep = many(tmp_path, 3 * MOST_IN_FULL)
    sink = PageSink()
    sink.sweep_started(SmallPlan(tmp_path, ()))  # type: ignore[arg-type]
    for record in sweep.records:
        sink.cell_finished(record, [])
    assert len(sink._worst) <= 2 * MOST_IN_FULL
