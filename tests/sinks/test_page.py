from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.reports.answer import worst_first
from sweeper.reports.page.data import MOST_IN_FULL
from sweeper.reports.page.page import page
from sweeper.sinks.page import PageSink
from tests.sinks.records import SmallPlan, measures
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
    sweep = many(tmp_path, MOST_IN_FULL + 30)
    sink = PageSink()
    sink.sweep_started(SmallPlan(tmp_path, ()))  # type: ignore[arg-type]
    records = [
        record.model_copy(update={"output": measures(0.01 * (1 + 7 * number % len(sweep.records)))})
        for number, record in enumerate(sweep.records)
    ]
    for record in records:
        sink.cell_finished(record, [])
        assert len(sink._worst) <= MOST_IN_FULL
    shown = worst_first(records)[:MOST_IN_FULL]  # as the page chooses
    assert {cell_id for cell_id, _ in sink._worst} == {record.cell_id for record in shown}
