"""The axis `compile`: the code that runs is compiled, hooks see it, and nothing of it is left behind."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from sweeper.cli.explain import explain_cell
from sweeper.cli.run import carry_out
from sweeper.comparator.hooks import CompiledCapture, ModuleOutput, kept_outputs
from sweeper.config import Attention, Compile
from sweeper.environment import environment
from sweeper.inputs.layout import Tokens
from sweeper.models import backends, compiled
from sweeper.models import conditions as settings
from sweeper.models.compiled import called, compiles, switches
from sweeper.models.conditions import in_force
from sweeper.planning.plan import make_plan
from sweeper.planning.unsupported import unsupported_reason
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import Store
from sweeper.sweep.runner import Runner
from tests.composing import request_of

IDS = "inputs.token_ids=[[5,6,7,8,9],[10,11]]"
TINY = ("checkpoint=tiny_llama", "wandb.mode=disabled", "inputs=token_ids", IDS, "reference={compile:off}")
needs_compiler = pytest.mark.skipif(not backends.has_cpp_compiler(), reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def run(tmp_path: Path, *arguments: str, kept_bytes: int = 2**30) -> list[tuple[CellRecord, tuple[ModuleRecord, ...]]]:
    plan = make_plan(request_of(*TINY, f"output_dir={tmp_path}", *arguments), environment("cpu"))
    running = Runner(plan.environment, latency_repeats=1, verdict=False, kept_bytes=kept_bytes, say=print)
    return [running.run(planned) for planned in plan.cells]


@pytest.mark.parametrize("kept_bytes", [2**30, 1])
def test_the_hooks_see_every_module_of_compiled_code(tmp_path: Path, kept_bytes: int) -> None:
    (off, modules), (traced, same) = run(tmp_path, "compile=off,aot_eager", "dtype=float32", kept_bytes=kept_bytes)
    assert traced.traceback is None
    assert [module.name for module in same] == [module.name for module in modules]
    assert off.hooks is None
    assert traced.hooks is not None
    assert traced.hooks.equal_fraction == 1
    assert traced.hooks.numel == traced.output.numel if traced.output is not None else False
    assert traced.output is not None
    assert traced.output.rel_l2 < 1e-5
    assert traced.cost is not None
    assert traced.cost.repeatable
    assert traced.without_effect.get("compile") is None


def test_an_encoder_is_compiled_too(tmp_path: Path) -> None:
    ((record, modules),) = run(tmp_path, "checkpoint=tiny_bert", "compile=aot_eager", "dtype=float32")
    assert record.output is not None, record.traceback
    assert record.output.rel_l2 < 1e-5
    assert len(modules) > 30
    assert record.texts[0].embedding_cosine > 0.999999


@needs_compiler
def test_explain_names_the_part_that_does_it(tmp_path: Path) -> None:
    arguments = ("compile=inductor", "dtype=bfloat16", f"output_dir={tmp_path}", "sweep=s", "latency_repeats=0")
    assert carry_out(request_of(*TINY, *arguments)) == 0
    folder = tmp_path / "single" / "s"
    (record,) = Store(folder).records()
    assert record.verdict is not None
    assert record.verdict.kind == "rounding"
    explained = explain_cell(folder, record.cell_id)
    tried = [one.name for one in explained.tried]
    assert explained.closed_bitwise
    assert explained.put_back in ("compile=inductor_precise_casts", "compile=aot_eager", "compile=off")
    assert "compile: inductor_precise_casts -> inductor" in tried


class Doubling(nn.Module):
    """A model that is nobody's of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    @property
    def base_model(self) -> nn.Module:
        return self.inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.inner(x)


def test_settings_are_forgotten_one_by_one() -> None:
    (off,) = request_of(*TINY).cells
    traced = off.model_copy(update={"compile": Compile.AOT_EAGER})
    assert not compiles(switches(off))
    assert compiles(switches(traced))
    model, x = Doubling().eval(), torch.ones(2, 3)
    with torch.no_grad(), in_force(switches(traced)), compiled.base_outputs(model, lambda output: output) as hidden:
        output = called(model, {"x": x})
        assert model in compiled._CODE.forwards
        with in_force(switches(off)):
            assert torch.equal(called(model, {"x": x}), output)
        assert torch.equal(2 * hidden[0], output)
        assert len(hidden) == 1
        called(model, {"x": x + 1})
        assert not torch.equal(hidden[1], hidden[0])
    assert "forward" not in vars(model)
    with compiled.hooks_inside(switches(traced)):
        assert model not in compiled._CODE.forwards


class Attending(nn.Module):
    """Attention alone."""

    @property
    def base_model(self) -> nn.Module:
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(x, x, x)


def test_code_is_made_anew_for_another_pinned_kernel() -> None:
    (off,) = request_of(*TINY).cells
    model, x = Attending().eval(), torch.randn(1, 2, 64, 32, generator=torch.Generator().manual_seed(0))
    given = []
    for attention in (Attention.SDPA_MATH, Attention.SDPA_FLASH, Attention.SDPA_MATH):
        cell = off.model_copy(update={"compile": Compile.AOT_EAGER, "attention": attention})
        with torch.no_grad(), in_force(settings.switches(cell)):
            given.append(called(model, {"x": x}))
            assert torch.equal(given[-1], model(x))
    assert torch.equal(given[0], given[2])
    assert not torch.equal(given[0], given[1])


def test_whoever_takes_an_output_may_let_the_code_run_again() -> None:
    """A side in step does so, whose next run overwrites what a CUDA graph gave."""
    given = {name: torch.full((2, 3), float(place)) for place, name in enumerate("abc")}
    taken: dict[str, list[float]] = {}

    def take(output: ModuleOutput) -> None:
        taken[output.name] = output.tensor_NF[0].tolist()
        for tensor in given.values():
            tensor.fill_(-1)

    capture = CompiledCapture(take)
    capture.begin(Tokens(shape=(1, 2), flat_N=torch.arange(2), lengths=(2,)))
    for name, tensor in given.items():
        module = nn.Identity()
        capture.register(name, module)
        module(tensor)
    capture.end()
    assert taken == {"a": [0.0] * 3, "b": [1.0] * 3, "c": [2.0] * 3}
    assert list(taken) == ["a", "b", "c"]
    assert not capture._given


def test_what_each_call_gave_outlives_the_next_one() -> None:
    module, buffer = nn.Identity(), torch.zeros(2)
    with kept_outputs(module, copied=True) as outputs:
        for value in (1, 2):
            module(buffer.fill_(value))
    assert [output.tolist() for output in outputs] == [[1, 1], [2, 2]]


def test_what_is_inside_of_one_model_is_not_another_s_nor_a_failed_call_s() -> None:
    (off,) = request_of(*TINY).cells
    traced = off.model_copy(update={"compile": Compile.AOT_EAGER})
    model, other, x = Doubling().eval(), Doubling().eval(), torch.ones(2, 3)
    with (
        torch.no_grad(),
        in_force(switches(traced)),
        compiled.base_outputs(model, lambda output: output) as hidden,
        compiled.base_outputs(other, lambda output: output) as others,
    ):
        compiled._CODE.hidden.setdefault(model, compiled._keeping())[0].append(x)
        with pytest.raises(TypeError):
            called(model, {"y": x})
        output = called(model, {"x": x})
        called(other, {"x": x})
    assert len(hidden) == len(others) == 1
    assert torch.equal(2 * hidden[0], output)


@pytest.mark.parametrize("kept_bytes", [2**30, 1])
def test_a_compiled_reference_meets_a_compiled_candidate(tmp_path: Path, kept_bytes: int) -> None:
    both = "reference={compile:aot_eager}", "compile=aot_eager", "layout=padded,single", "dtype=float32"
    for record, modules in run(tmp_path, *both, kept_bytes=kept_bytes):
        assert record.traceback is None
        assert record.output is not None, record.reason
        assert record.output.rel_l2 < 1e-5
        assert modules


def test_code_for_the_cpu_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    (off,) = request_of(*TINY).cells
    reasons = {
        setting: unsupported_reason(off.model_copy(update={"compile": setting}))
        for setting in (Compile.OFF, Compile.AOT_EAGER, Compile.INDUCTOR)
    }
    assert reasons[Compile.OFF] is None
    assert reasons[Compile.AOT_EAGER] is None
    assert "needs a C++ compiler" in str(reasons[Compile.INDUCTOR])
