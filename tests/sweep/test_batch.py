"""The axis `batch`: texts share forwards otherwise on either side, and their rows meet all the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from sweeper.config import Batch
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.records.cell import CellRecord
from sweeper.sweep.runner import Runner
from tests.composing import request_of

TEXTS = [[5, 6, 7, 8, 9], [10, 11], [12, 13, 14, 15, 16, 17], [20], [21, 22, 23], [24, 25, 26, 27], [28, 29, 30]]
TINY = ("checkpoint=tiny_llama", "wandb.mode=disabled", "inputs=token_ids", f"inputs.token_ids={TEXTS}")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(tmp_path: Path, *arguments: str, kept_bytes: int = 2**30) -> dict[str, CellRecord]:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *arguments), environment("cpu"))
    running = Runner(plan.environment, latency_repeats=0, verdict=False, kept_bytes=kept_bytes, say=print)
    return {str(planned.cell.axes()["batch"]): running.run(planned)[0] for planned in plan.cells}


@pytest.mark.parametrize("kept_bytes", [2**30, 1])
@pytest.mark.parametrize("layout", ["padded_left", "padded_right", "packed"])
def test_every_row_meets_its_own_whatever_the_batches(tmp_path: Path, layout: str, kept_bytes: int) -> None:
    """A batch moves nothing but the last bits in float64; a row that met another's would be far off."""
    every = f"batch={','.join(Batch)}"
    options = ("dtype=float64", f"layout={layout}", "inputs.batch_size=3", "reference={batch:of_2}")
    records = run(tmp_path, every, *options, kept_bytes=kept_bytes)
    assert list(records) == list(Batch)
    for batch, record in records.items():
        assert record.reason is None, (batch, record.traceback)
        assert record.output is not None
        assert record.output.rel_l2 < 1e-12
        assert record.output.numel == sum(map(len, TEXTS)) * 512
        assert [text.tokens for text in record.texts] == list(map(len, TEXTS))
        assert max(text.embedding_max_abs for text in record.texts) < 1e-12
    assert records["of_2"].first_divergence is None


def test_an_encoder_has_batches_too(tmp_path: Path) -> None:
    ids = "inputs.token_ids=[[5,6,7],[8,9],[10,11,12,13],[14,15]]"  # a pooler of one token would look like one
    options = ("checkpoint=tiny_bert", ids, "dtype=float64", "batch=alone,of_2,of_2_sorted", "reference={batch:of_2}")
    records = run(tmp_path, *options)
    for batch, record in records.items():
        assert record.output is not None, (batch, record.traceback)
        assert record.output.rel_l2 < 1e-12
        assert record.neighbours_changed in (None, 0)


def test_a_wrong_position_shows_in_its_own_text(tmp_path: Path) -> None:
    """Implicit positions count pads: only the texts that were padded move, and sorting pads others."""
    options = (
        "dtype=float64",
        "positions=implicit",
        "reference={batch:alone,positions:explicit}",
        "layout=padded_left",
    )
    records = run(tmp_path, "batch=of_2,of_2_sorted", *options)
    forwards = {"of_2": [(0, 1), (2, 3), (4, 5), (6,)], "of_2_sorted": [(0, 2), (4, 5), (1, 6), (3,)]}
    for batch, record in records.items():
        padded = {
            text
            for forward in forwards[batch]
            for text in forward
            if len(TEXTS[text]) < max(len(TEXTS[other]) for other in forward)
        }
        assert padded
        moved = {text.text for text in record.texts if text.output_max_abs > 1e-9}
        assert moved == {text for text in padded if len(TEXTS[text]) > 1}


def test_what_a_batch_does_not_do_is_in_the_record(tmp_path: Path) -> None:
    records = run(tmp_path, "batch=of_2,of_8", "reference={batch:alone}")
    assert "batch" not in records["of_2"].without_effect
    assert records["of_8"].without_effect["batch"] == "there are only 7 texts, which share one forward"


def test_alone_it_means_nothing(tmp_path: Path) -> None:
    plan = make_plan(
        request_of(*TINY, "batch=of_2,of_8", "layout=single", f"output_dir={tmp_path}"), environment("cpu")
    )
    assert [planned.cell.batch for planned in plan.cells] == [Batch.INPUTS]
    assert plan.dropped == ("batch has no meaning for tiny_llama: layout=single runs each text alone",)
