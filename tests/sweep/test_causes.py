"""The cause of a cell's difference, as far as a few forwards in the sweep find it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.records.verdict import CauseRecord
from sweeper.sweep import judging
from sweeper.sweep.judging import Causes
from sweeper.sweep.runner import Runner
from sweeper.verdict import likely_cause
from sweeper.verdict.rules import Kind, Verdict
from tests.composing import request_of


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def causes(tmp_path: Path, *arguments: str) -> list[CauseRecord | None]:
    """The causes of the cells that are not their own reference."""
    tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path}")
    plan = make_plan(request_of(*tiny, *arguments), environment("cpu"))
    runner = Runner(plan.environment, say=print)
    records = [runner.run(planned)[0] for planned in plan.cells if planned.cell_id != planned.reference_id]
    assert all(record.verdict is not None for record in records), [record.reason for record in records]
    return [record.verdict.cause for record in records if record.verdict is not None]


def test_a_rounded_table_is_put_back_in_one_forward_once_for_all_cells_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: Counter[str] = Counter()
    run = likely_cause.run

    def counted(side: Any) -> Any:
        ran["forwards"] += 1
        return run(side)

    monkeypatch.setattr(likely_cause, "run", counted)
    strategies = "load_strategy=cast_after_load,cast_before_move,auto_then_cast"
    found = causes(tmp_path, strategies, "reference={load_strategy:dtype_at_load}")
    (cause,) = set(found)
    assert len(found) == 3
    assert cause is not None
    assert ran["forwards"] == cause.forwards == 1
    assert cause.what is not None
    assert "rotary_emb.inv_freq" in cause.what
    assert "rounded to bfloat16, and nobody asked for that" in cause.what
    assert cause.put_back is not None
    assert "dtype=bfloat16" in cause.put_back
    assert cause.closed_bitwise
    assert cause.replay_before is not None
    assert cause.replay_after is not None
    assert cause.replay_after < 1e-12 < cause.replay_before


def test_where_the_dtype_asked_for_hides_it_the_replay_that_was_measured_is_the_proof(tmp_path: Path) -> None:
    (cause,) = causes(tmp_path, "load_strategy=cast_after_load")
    assert cause is not None
    assert (cause.forwards, cause.closed_bitwise) == (0, False)
    assert cause.replay_after is not None
    assert cause.replay_after < 1e-12


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("layout=packed", "use_cache=true", "reference={layout:padded_left,use_cache:false}"), "use_cache"),
        (
            ("layout=packed", "dtype=float32", "use_cache=true", "reference={layout:single,use_cache:false}"),
            "use_cache",
        ),
    ],
)
def test_an_argument_that_makes_another_function_is_named(
    tmp_path: Path, arguments: tuple[str, ...], what: str
) -> None:
    (cause,) = causes(tmp_path, *arguments)
    assert cause is not None
    assert cause.what is not None, cause
    assert cause.what.startswith(what)
    assert 0 < cause.forwards <= likely_cause.FORWARDS


@pytest.mark.parametrize("kind", [Kind.ROUNDING, Kind.IDENTICAL, Kind.INCONCLUSIVE])
def test_other_kinds_have_no_cause_and_cost_no_forward(kind: Kind) -> None:
    judged: Any = SimpleNamespace(verdict=Verdict(kind, "because", ()))  # whatever else is looked at raises
    assert Causes().of(judged, "c1") is None


@pytest.mark.parametrize(
    ("error", "said"), [(RuntimeError("no way"), "RuntimeError: no way"), (MemoryError("no room"), "memory ran out")]
)
def test_a_cause_that_cannot_be_looked_for_leaves_the_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(judging, "pointed_at", fail)
    (cause,) = causes(tmp_path, "load_strategy=cast_after_load", "reference={load_strategy:dtype_at_load}")
    assert cause is not None
    assert (cause.what, cause.error) == (None, said)
