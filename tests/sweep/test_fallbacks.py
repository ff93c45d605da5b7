"""A kernel that torch swaps for another changes a result: the record says so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from sweeper.cli.run import carry_out
from sweeper.comparator.passes import KEPT_BYTES
from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.records.sweep import Sweep
from sweeper.reports.cells_table import reasons
from sweeper.sweep.fallbacks import fallbacks_heard
from sweeper.sweep.runner import Runner
from tests.composing import request_of

SAID = "mkldnn_matmul failed, switching to baddbmm:could not create a primitive"


def test_every_time_it_is_said_is_heard_and_other_warnings_are_shown() -> None:
    for _ in range(2):
        with warnings.catch_warnings(record=True) as shown, fallbacks_heard() as said:
            warnings.simplefilter("always")
            for text in (SAID, SAID, "something else"):
                warnings.warn(text, UserWarning, stacklevel=1)
        assert said == [SAID]
        assert [str(one.message) for one in shown] == ["something else"]


def test_the_record_of_a_cell_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    linear = torch.nn.functional.linear

    def short_of_memory(*arguments: torch.Tensor) -> torch.Tensor:
        warnings.warn(SAID, UserWarning, stacklevel=1)
        return linear(*arguments)

    monkeypatch.setattr(torch.nn.functional, "linear", short_of_memory)
    tiny = ("checkpoint=tiny_llama", "verdict=false", "inputs.texts=[ab]", "wandb.mode=disabled", "sweep=s")
    assert carry_out(request_of(*tiny, f"output_dir={tmp_path}")) == 0
    sweep = Sweep.read(tmp_path / "single" / "s")
    assert sweep.records[0].fallbacks == (SAID,)
    assert f"torch took another kernel: {SAID} (×1)" in [reason for _, reason in reasons(sweep.records)]


@pytest.mark.parametrize("kept_bytes", [KEPT_BYTES, 0])
def test_every_cell_says_what_its_reference_fell_back_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_bytes: int
) -> None:
    """The reference runs once, with or before the first cell: the other cells rest on the same run."""
    linear = torch.nn.functional.linear

    def short_of_memory(input: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        if input.dtype == torch.float64:
            warnings.warn(SAID, UserWarning, stacklevel=1)
        return linear(input, *more)

    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.nn.functional, "linear", short_of_memory)
    request = request_of(
        "checkpoint=tiny_llama", "inputs.texts=[ab]", "reference={dtype:float64}", "dtype=float32,bfloat16"
    )
    cells = make_plan(request, environment("cpu")).cells
    runner = Runner(environment("cpu"), verdict=False, kept_bytes=kept_bytes, say=lambda _: None)
    records = [runner.run(cell, cells[place + 1 :])[0] for place, cell in enumerate(cells)]
    assert [record.fallbacks for record in records] == [(SAID,), (SAID,)]
