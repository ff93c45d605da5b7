"""What needs no run because it is known: the same evidence as with all of the runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sweeper.comparator.side import sides
from sweeper.environment import environment
from sweeper.models.axis import Switch
from sweeper.planning.plan import make_plan
from sweeper.records.verdict import VerdictRecord
from sweeper.sweep.runner import Runner
from sweeper.verdict.known_errors import KnownErrors
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_runs import Given, Kept
from sweeper.verdict.own_errors import Natively
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.state_changes import provenance
from tests.composing import request_of
from tests.small_models import llama, padded_left


@contextmanager
def coarse_products(dtype: torch.dtype) -> Iterator[None]:
    """As a flag for coarse products does: torch's linear layers give something else."""
    plain = nn.functional.linear

    def coarse(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return plain(hidden.to(dtype).to(hidden.dtype), weight, bias)

    nn.functional.linear = coarse
    try:
        yield
    finally:
        nn.functional.linear = plain


OFF = Switch("off", "switch it off", nullcontext)
ON = Switch("on", "switch it off", partial(coarse_products, torch.float16))
COARSER = Switch("coarser", "switch it off", partial(coarse_products, torch.bfloat16))

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def linear(**changes: Any) -> nn.Linear:
    """A linear layer in eval mode, with the hooks of who watches it."""
    made = nn.Linear(3, 3).eval()
    made.register_forward_pre_hook(lambda *_: None)
    made.register_forward_hook(lambda *_: None)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def given(*tensors: Any, **more: Any) -> Given:
    leaves = [*tensors, *more.values()]
    return Given(tensors, more, [leaf for leaf in leaves if torch.is_tensor(leaf) and leaf.is_floating_point()])


KEY = (0, "layer", 0)
FOUND = OwnError(name="layer", own=0.25, dtype="float32")
HIDDEN = torch.ones(2, 3)
KEPT = Kept((HIDDEN,), {}, (None, None), [torch.ones(2, 3)])


def test_what_one_side_has_shown_is_known_of_the_next() -> None:
    known = KnownErrors()
    assert known.ask(KEY, linear(), given(HIDDEN)) is None
    known.tell(KEY, FOUND)
    assert known.ask(KEY, linear(), given(HIDDEN)) == FOUND
    assert known.ask((0, "layer", 1), linear(), given(HIDDEN)) is None
    assert known.ask(KEY, linear(), given(HIDDEN.bfloat16())) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert known.ask(KEY, linear(), given(HIDDEN)) is None
    assert not known.is_references(linear(), given(HIDDEN), KEPT)


def test_a_side_with_the_weights_and_conditions_of_the_reference_gives_its_bits() -> None:
    known = KnownErrors(same=True)
    assert known.is_references(linear(), given(HIDDEN), KEPT)
    assert not known.is_references(linear(), given(HIDDEN.bfloat16()), KEPT)
    with torch.autocast("cpu", torch.bfloat16):
        assert not known.is_references(linear(), given(HIDDEN), KEPT)


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
def test_what_may_read_or_draw_something_else_is_run(module: Any) -> None:
    assert_is_run(module, given(HIDDEN))


def test_what_is_given_something_else_than_numbers_is_run() -> None:
    assert_is_run(linear, given(HIDDEN, 1))
    assert_is_run(linear, given(HIDDEN, places=torch.arange(3)))


def assert_is_run(module: Any, arguments: Given) -> None:
    known = KnownErrors(same=True)
    assert known.ask(KEY, module(), arguments) is None
    known.tell(KEY, FOUND)
    assert known.ask(KEY, module(), arguments) is None
    assert not known.is_references(module(), arguments, Kept(arguments.args, arguments.kwargs, (None, None)))


def far_off() -> nn.Module:
    """A model whose layers give something else than those of `llama()`."""
    made = llama()
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if name.endswith("_proj.weight"):
                parameter.mul_(1.5)
    return made


@pytest.mark.parametrize(
    "change",
    [
        pytest.param((far_off, OFF), id="another state"),
        pytest.param((llama, ON), id="other conditions"),
    ],
)
def test_a_side_that_is_not_the_references_in_all_is_run(change: tuple[Any, Switch]) -> None:
    model, switch = change
    reference, candidate = sides(llama(), model(), padded_left())
    reference = replace(reference, weights="one", switches={"flag": OFF})
    candidate = replace(candidate, weights="one", switches={"flag": switch})
    found = provenance(reference.model, candidate.model)
    errors = Natively(reference, candidate, found).examine()
    products = [one for name, one in errors.items() if name.endswith("_proj")]
    assert products
    assert all(one.own > 1e-4 for one in products)


def test_what_is_known_is_that_of_the_weights_and_conditions_alone() -> None:
    """One reference's evidence, candidates one behind the other: as each of them alone."""
    evidence = ReferenceEvidence()
    model, candidates = llama(), [llama(torch.bfloat16), far_off(), llama()]

    def examined(place: int, switch: Switch, evidence: ReferenceEvidence | None) -> dict[str, OwnError]:
        reference, candidate = sides(model, candidates[place], padded_left())
        reference = replace(reference, weights="reference", switches={"flag": OFF})
        candidate = replace(candidate, weights=f"candidate {place}", switches={"flag": switch})
        found = provenance(model, candidates[place])
        return Natively(reference, candidate, found, evidence=evidence).examine()

    for place, switch in ((0, OFF), (1, OFF), (2, OFF), (2, ON), (2, COARSER), (1, ON), (0, OFF)):
        assert examined(place, switch, evidence) == examined(place, switch, None)


GRIDS = {
    "dtypes and backends": ("+grid=bf16_vs_fp32",),
    "layouts": (
        *("layout=padded_right,packed", "attention=sdpa", "dtype=float32,bfloat16"),
        "reference={layout:padded_right,dtype:float32}",
    ),
    "every run": ("+grid=bf16_vs_fp32", "load_strategy=dtype_at_load,autocast", "verdict=full"),
}


WAYS = {
    "dtypes and backends": {"shown before", "the reference's"},
    "layouts": set(),
    "every run": {"shown before", "the reference's"},
}


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("grid", GRIDS)
def test_the_evidence_is_the_same_as_with_all_of_the_runs(
    grid: str, device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, is_references, known = KnownErrors.ask, KnownErrors.is_references, set()

    def asked(self: KnownErrors, *arguments: Any) -> OwnError | None:
        found = ask(self, *arguments)
        known.update({"shown before"} if found is not None else ())
        return found

    def asked_of_reference(self: KnownErrors, *arguments: Any) -> bool:
        found = is_references(self, *arguments)
        known.update({"the reference's"} if found else ())
        return found

    def verdicts(name: str) -> list[VerdictRecord | None]:
        tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path / name}")
        plan = make_plan(request_of(*tiny, f"device={device}", *GRIDS[grid]), environment(device))
        runner = Runner(plan.environment, verdict="full" if "verdict=full" in GRIDS[grid] else True, say=print)
        return [runner.run(planned)[0].verdict for planned in plan.cells]

    monkeypatch.setattr(KnownErrors, "ask", asked)
    monkeypatch.setattr(KnownErrors, "is_references", asked_of_reference)
    with_known = verdicts("with")
    assert known >= WAYS[grid]
    monkeypatch.setattr(KnownErrors, "ask", lambda *_: None)
    monkeypatch.setattr(KnownErrors, "is_references", lambda *_: False)
    assert with_known == verdicts("without")
