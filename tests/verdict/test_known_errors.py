"""What needs no run because it is known: the same evidence as with all of the runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from sweeper.environment import environment
from sweeper.planning.plan import make_plan
from sweeper.records.verdict import VerdictRecord
from sweeper.sweep.runner import Runner
from sweeper.verdict.known_errors import KnownErrors
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_runs import Kept
from tests.composing import request_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def linear(**changes: Any) -> nn.Linear:
    """A linear layer in eval mode, with the hooks of who watches it."""
    made = nn.Linear(3, 3).eval()
    made.register_forward_pre_hook(lambda *_: None)
    made.register_forward_hook(lambda *_: None)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def kept(*given: Any) -> Kept:
    return Kept(given, {}, (None, None), [torch.ones(2, 3)])


KEY = (0, "layer", 0)
FOUND = OwnError(name="layer", own=0.25, dtype="float32")
HIDDEN = torch.ones(2, 3)


def test_what_one_side_has_shown_is_known_of_the_next() -> None:
    known = KnownErrors(same=False)
    assert known.ask(KEY, linear(), ((HIDDEN,), {}), kept(HIDDEN)) is None
    known.tell(KEY, FOUND)
    assert known.ask(KEY, linear(), ((HIDDEN,), {}), kept(HIDDEN)) == FOUND
    assert known.ask((0, "layer", 1), linear(), ((HIDDEN,), {}), kept(HIDDEN)) is None
    assert known.ask(KEY, linear(), ((HIDDEN.bfloat16(),), {}), kept(HIDDEN)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert known.ask(KEY, linear(), ((HIDDEN,), {}), kept(HIDDEN)) is None


def test_a_side_with_the_weights_and_conditions_of_the_reference_gives_its_bits() -> None:
    known = KnownErrors(same=True)
    found = known.ask(KEY, linear(), ((HIDDEN,), {}), kept(HIDDEN))
    assert found is not None
    assert (found.name, found.own, found.dtype) == ("layer", 0.0, "float32")
    assert known.ask(KEY, linear(), ((HIDDEN.bfloat16(),), {}), kept(HIDDEN)) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert known.ask(KEY, linear(), ((HIDDEN,), {}), kept(HIDDEN)) is None


class Own(nn.Linear):
    """Anyone's class, which may read anything."""


def own() -> nn.Linear:
    made = linear()
    made.__class__ = Own
    return made


def hooked() -> nn.Linear:
    made = linear()
    made.register_forward_hook(lambda *_: None)
    return made


@pytest.mark.parametrize(
    "module",
    [
        pytest.param(own, id="another class"),
        pytest.param(hooked, id="another hook"),
        pytest.param(lambda: linear(forward=lambda hidden: hidden), id="another forward"),
        pytest.param(lambda: linear().train(), id="training"),
        pytest.param(lambda: nn.utils.parametrizations.weight_norm(linear()), id="computed weights"),
    ],
)
@pytest.mark.parametrize("same", [True, False])
def test_what_may_read_or_draw_something_else_is_run(module: Any, same: bool) -> None:
    known = KnownErrors(same=same)
    assert known.ask(KEY, module(), ((HIDDEN,), {}), kept(HIDDEN)) is None
    known.tell(KEY, FOUND)
    assert known.ask(KEY, module(), ((HIDDEN,), {}), kept(HIDDEN)) is None
    assert known.ask(KEY, linear(), ((HIDDEN, 1), {}), kept(HIDDEN, 1)) is None
    assert known.ask(KEY, linear(), ((HIDDEN,), {"places": torch.arange(3)}), kept(HIDDEN)) is None


GRIDS = {
    "dtypes and backends": ("+grid=bf16_vs_fp32",),
    "layouts": (
        *("layout=padded_right,packed", "attention=sdpa", "dtype=float32,bfloat16"),
        "reference={layout:padded_right,dtype:float32}",
    ),
    "every run": ("+grid=bf16_vs_fp32", "load_strategy=dtype_at_load,autocast", "verdict=full"),
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_evidence_is_the_same_as_with_all_of_the_runs(
    grid: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, known = KnownErrors.ask, []

    def asked(self: KnownErrors, *arguments: Any) -> OwnError | None:
        found = ask(self, *arguments)
        known.append(found is not None)
        return found

    def verdicts(name: str) -> list[VerdictRecord | None]:
        tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path / name}")
        plan = make_plan(request_of(*tiny, f"device={device}", *GRIDS[grid]), environment(device))
        runner = Runner(plan.environment, verdict="full" if "verdict=full" in GRIDS[grid] else True, say=print)
        return [runner.run(planned)[0].verdict for planned in plan.cells]

    monkeypatch.setattr(KnownErrors, "ask", asked)
    with_known = verdicts("with")
    assert any(known)
    monkeypatch.setattr(KnownErrors, "ask", lambda *_: None)
    assert with_known == verdicts("without")
