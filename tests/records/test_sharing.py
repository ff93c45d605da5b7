"""Equal parts of records are one object; what a record says stays the same."""

from __future__ import annotations

import math
from pathlib import Path

from sweeper.records.sharing import Shared, SharedRecords
from sweeper.records.sweep import Sweep
from tests.sinks.sweeps import measured, report_1


def test_a_record_says_what_it_said(tmp_path: Path) -> None:
    shared = Shared()
    for record in report_1(tmp_path).records:
        assert shared.record(record).model_dump_json() == record.model_dump_json()


def test_what_is_equal_is_held_once_and_what_is_not_is_not(tmp_path: Path) -> None:
    first, second, third, _ = report_1(tmp_path).records
    assert second.state is third.state
    assert second.state is not first.state
    assert first.environment is second.environment is third.environment
    assert first.axes is not second.axes


def test_values_that_only_look_alike_are_apart() -> None:
    records = SharedRecords()
    for cell_id, value in (("a", 1), ("b", True), ("c", "1"), ("d", math.nan), ("e", 1.0)):
        records.add(measured(cell_id, environment={"threads": value}))
    assert [type(record.environment["threads"]) for record in records.values()] == [int, bool, str, float, float]


def test_a_sweep_in_memory_takes_little_more_than_its_figures(tmp_path: Path) -> None:
    import tracemalloc

    big = {f"setting_{number}": "x" * 100 for number in range(200)}
    cells = [(measured(f"{number:012d}", environment=big, reference_choices=big), []) for number in range(100)]
    from tests.sinks.sweeps import stored

    stored(tmp_path, cells)
    tracemalloc.start()
    try:
        sweep = Sweep.read(tmp_path)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(sweep.records) == 100
    assert taken < 100 * len(str(big))
