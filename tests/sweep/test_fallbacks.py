"""A kernel that torch swaps for another changes a result: the record says so."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from sweeper.cli.run import carry_out
from sweeper.records.sweep import Sweep
from sweeper.reports.cells_table import reasons
from sweeper.sweep.fallbacks import fallbacks_heard
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
