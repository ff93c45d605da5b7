"""A reference that is kept and one that runs in step give the same records, bit for bit, whatever the two sides do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sweeper import passes, runner
from sweeper.environment import environment
from sweeper.plan import Plan, make_plan
from sweeper.results import Status
from sweeper.runner import Runner
from tests.composing import request_of

TINY = (
    "checkpoint=tiny_llama",
    "inputs=sentences",
    "inputs.max_tokens=12",
    "inputs.batch_size=3",
    "wandb.mode=disabled",
)
PAIRS = {
    "layouts": ("layout=single,packed", "reference={layout:padded_right}"),
    "a text at a time against all at once": ("layout=packed", "reference={layout:single}"),
    "dtypes": ("dtype=float16", "reference={dtype:float32}"),
    "casts": ("dtype=bfloat16", "load_strategy=cast_after_load,autocast", "reference={load_strategy:dtype_at_load}"),
    "autocast on one side": ("dtype=bfloat16", "reference={load_strategy:autocast}"),
    "attention, one model": ("attention=sdpa,sdpa_math", "reference={attention:eager}"),
    "flags, one model": ("numerics=deterministic", "reference={numerics:default}"),
    "itself": ("dtype=float32",),
    "cache": ("layout=packed", "use_cache=true", "reference={use_cache:false}"),
}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def records(plan: Plan, kept_bytes: int) -> list[dict[str, Any]]:
    """Everything that must not depend on how the two sides met."""
    running = Runner(plan.environment, latency_repeats=1, verdict=False, kept_bytes=kept_bytes, say=print)
    found = []
    for planned in plan.cells:
        record, modules = running.run(planned)
        assert record.status is Status.OK, record.traceback
        figures = record.model_dump(exclude={"cost", "attempt", "started_at"}, mode="json")
        found.append({**figures, "modules": [module.model_dump_json() for module in modules]})
    return found


@pytest.mark.parametrize(
    ("pair", "turn_bytes"), [*((pair, 20_000) for pair in PAIRS), ("layouts", 1), ("autocast on one side", 2**30)]
)
def test_in_step_gives_the_records_of_a_recording(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pair: str, turn_bytes: int
) -> None:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *PAIRS[pair]), environment("cpu"))
    kept = records(plan, 2**30)
    ran = []

    def compare_in_step(*arguments: Any) -> Any:
        ran.append(arguments)
        return passes.compare_in_step(*arguments, turn_bytes=turn_bytes)

    monkeypatch.setattr(runner, "compare_in_step", compare_in_step)
    assert records(plan, 1000) == kept
    assert len(ran) == len(plan.cells)
