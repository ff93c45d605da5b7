"""Compiled code against what is written: a fault of a compiler is semantic, whatever hides it, and named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from sweeper import compare_models
from sweeper.cli.explain import explain_cell
from sweeper.cli.run import carry_out
from sweeper.comparator.side import run, sides
from sweeper.config import Compile
from sweeper.models import compiled
from sweeper.records.store import Store
from sweeper.verdict.comparison import compare_sides
from sweeper.verdict.float64_replay import replayed
from sweeper.verdict.likely_cause import likely_cause, pointed_at
from sweeper.verdict.measured import CompiledCode, Measured
from sweeper.verdict.rules import Kind, judge
from tests.composing import request_of

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Code that others compiled is not ours."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, 32)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + functional.gelu(self.up(self.norm(hidden)))


class Model(nn.Module):
    """Two layers behind one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(2))

    def forward(self, hidden: Tensor) -> Tensor:
        for layer in self.layers:
            hidden = layer(hidden)
        return hidden


def model(dtype: torch.dtype = torch.float32) -> Model:
    torch.manual_seed(0)
    return Model().to(dtype).eval()


def hidden(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {"hidden": torch.randn(2, 6, 32, generator=torch.Generator().manual_seed(1)).to(dtype)}


def backend(old: Any, new: Any) -> Callable[[torch.fx.GraphModule, Any], Any]:
    """A compiler that puts one function in place of another."""

    def compiles(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        for node in graph.graph.nodes:
            if node.target is old:
                node.target = new
        graph.recompile()
        return graph.forward

    return compiles


def by_tanh(hidden: Tensor) -> Tensor:
    return functional.gelu(hidden, approximate="tanh")


def in_steps(hidden: Tensor) -> Tensor:
    return 0.5 * hidden * (1 + torch.erf(hidden * 0.5**0.5))


WRONG, RIGHT = backend(functional.gelu, by_tanh), backend(functional.gelu, in_steps)


def whole(model: nn.Module, backend: Any) -> nn.Module:
    compiled: Any = torch.compile(model, backend=backend)
    return compiled  # type: ignore[no-any-return]


def in_place(model: nn.Module, backend: Any) -> nn.Module:
    model.compile(backend=backend)
    return model


class Closure(nn.Module):
    """A model that compiles inside, as who serves it may."""

    def __init__(self, model: nn.Module, backend: Any) -> None:
        super().__init__()
        self.model = model
        self._call: Any = torch.compile(model.forward, backend=backend)

    def forward(self, hidden: Tensor) -> Any:
        return self._call(hidden)


wrong_gelu = torch.compile(functional.gelu, backend=WRONG)


class Plain(nn.Module):
    """One activation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.Linear(32, 32)

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.gelu(self.up(hidden))


class Global(Plain):
    """The same by a compiled function of this file."""

    def forward(self, hidden: Tensor) -> Tensor:
        return wrong_gelu(self.up(hidden))  # type: ignore[no-any-return]


WAYS = pytest.mark.parametrize("compile_it", [whole, in_place, Closure])


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fault_of_the_compiler_is_semantic_and_closed_by_what_is_written(compile_it: Any, dtype: torch.dtype) -> None:
    comparison = compare_models(model(dtype), compile_it(model(dtype), WRONG), hidden(dtype))
    (code,) = comparison.measured.compiled
    if dtype is torch.bfloat16:
        assert code.native < code.floor * 4  # natively nothing is to be seen
        assert code.exact is not None
        assert code.exact > 10 * code.exact_bound
    assert comparison.verdict.kind is Kind.SEMANTIC
    assert "compiled code" in comparison.verdict.reason
    explained = comparison.explain()
    assert explained.closing is not None
    assert explained.closing.bitwise
    assert "torch.compile" in explained.cause
    assert "as a whole" in explained.cause
    assert len(explained.tried) == 1


@WAYS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_code_that_rounds_otherwise_is_rounding(compile_it: Any, dtype: torch.dtype) -> None:
    comparison = compare_models(model(dtype), compile_it(model(dtype), RIGHT), hidden(dtype))
    (code,) = comparison.measured.compiled
    assert code.native > 0
    assert not code.other_function
    assert comparison.verdict.kind is Kind.ROUNDING
    assert "torch.compile" in comparison.explain().cause


class Stateless(nn.Module):
    """Whose arguments alone have a dtype."""

    def forward(self, hidden: Tensor) -> Tensor:
        return functional.gelu(hidden)


@pytest.mark.parametrize(("compiler", "kind"), [(WRONG, Kind.SEMANTIC), (RIGHT, Kind.ROUNDING)])
@pytest.mark.parametrize("autocast", [True, False])
def test_16_bits_that_the_parameters_lack_hide_no_fault_either(autocast: bool, compiler: Any, kind: Kind) -> None:
    made, given = (model, hidden()) if autocast else (Stateless, hidden(torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        comparison = compare_models(made(), whole(made(), compiler), given)
    (code,) = comparison.measured.compiled
    assert code.native < code.floor * 4
    assert code.exact is not None
    assert comparison.verdict.kind is kind


def test_one_compiled_module_of_several_is_named() -> None:
    candidate = model()
    for layer, compiler in zip(candidate.layers, (RIGHT, WRONG), strict=True):
        layer.compile(backend=compiler)
    explained = compare_models(model(), candidate, hidden()).explain()
    assert explained.closing is not None
    assert "layers.1" in explained.closing.name
    assert explained.closing.fix == "do not compile layers.1"
    assert candidate.layers[1]._compiled_call_impl is not None


def test_a_compiled_function_of_the_file_is_found() -> None:
    comparison = compare_models(Plain().eval(), Global().eval(), hidden())
    assert comparison.verdict.kind is Kind.SEMANTIC
    assert "compiled code" in comparison.verdict.reason
    assert "torch.compile" in comparison.explain().cause


def test_it_is_named_behind_a_dtype_that_was_asked_for() -> None:
    both = sides(model(), in_place(model(torch.bfloat16), WRONG), hidden(), hidden(torch.bfloat16))
    comparison = compare_sides(*both, full=False)
    assert comparison.verdict.kind is Kind.SEMANTIC
    assert comparison.first_divergence is None  # of modules the first one rounds otherwise, and is not to blame
    cause = likely_cause(comparison, pointed_at(comparison), "cell")
    assert "torch.compile" in (cause.what or "")
    assert cause.replay_before is not None
    assert (cause.replay_after, cause.forwards) == (0, 2), "both runs in float64 are made, not taken for granted"
    assert "torch.compile" in comparison.explain().cause


def test_a_reference_that_is_compiled_wrongly_is_named_too() -> None:
    comparison = compare_models(whole(model(), WRONG), model(), hidden())
    assert comparison.verdict.kind is Kind.SEMANTIC
    assert "the reference" in comparison.explain().cause


def test_what_its_verdict_leaves_out_does_not_change_it() -> None:
    both = sides(model(torch.bfloat16), whole(model(torch.bfloat16), WRONG), hidden(torch.bfloat16))
    comparison = compare_sides(*both, full=False)
    assert comparison.verdict.kind is Kind.SEMANTIC
    assert "replay" in comparison.measured.left_out


def test_a_replay_runs_what_is_written() -> None:
    reference, candidate = sides(model(), Closure(model(), WRONG), hidden())
    outputs = []
    for side in (reference, candidate):
        with replayed(side) as (exact, _):
            outputs.append(next(iter(run(exact).values())))
    assert torch.equal(*outputs)


def test_a_backend_that_does_not_know_float64_is_said() -> None:
    def fails(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        if any(tensor.dtype is torch.float64 for tensor in inputs if isinstance(tensor, Tensor)):
            raise ValueError("no float64 here")
        return RIGHT(graph, inputs)

    comparison = compare_models(model(torch.bfloat16), whole(model(torch.bfloat16), fails), hidden(torch.bfloat16))
    (code,) = comparison.measured.compiled
    assert comparison.verdict.kind is Kind.ROUNDING
    assert "no float64 here" in (code.not_exact or "")
    assert "no float64 here" in str(comparison)


def test_the_models_are_left_as_they_were() -> None:
    candidate = Closure(model(torch.bfloat16), WRONG)
    before = {name: value.clone() for name, value in candidate.state_dict().items()}
    compare_models(model(torch.bfloat16), candidate, hidden(torch.bfloat16)).explain()
    after = candidate.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert {value.dtype for value in after.values()} == {torch.bfloat16}


CODE = CompiledCode(side="candidate", how="torch.compile", native=0.01, floor=0.01)


def test_figures_decide() -> None:
    assert not CODE.other_function
    assert replace(CODE, native=0.05).other_function
    assert replace(CODE, native=float("nan")).other_function
    assert replace(CODE, exact=1e-4, exact_bound=1e-5).other_function
    assert not replace(CODE, exact=1e-6, exact_bound=1e-5).other_function
    assert not replace(CODE, native=0.05, chooses=True).other_function  # a choice may have turned
    assert replace(CODE, native=0.05, chooses=True, exact=1e-4, exact_bound=1e-5).other_function
    assert not replace(CODE, native=0.0, floor=float("nan")).other_function


def test_it_decides_where_the_model_has_no_replay() -> None:
    measured = Measured(identical=False, native=1.0, replay_error="RuntimeError: no float64")
    assert judge(measured).kind is Kind.INCONCLUSIVE
    assert judge(replace(measured, compiled=(replace(CODE, native=1.0),))).kind is Kind.SEMANTIC


def test_explain_names_the_option_of_a_cell_that_closes_it(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step to inductor goes wrong here, and what lies before it does not."""
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    options = {one: {"backend": "aot_eager"} for one in compiled._OPTIONS}
    wrong = backend(functional.silu, lambda hidden, inplace=False: functional.gelu(hidden))
    monkeypatch.setattr(compiled, "_OPTIONS", {**options, Compile.INDUCTOR: {"backend": wrong}})
    inputs = "inputs.token_ids=[[5,6,7,8,9],[10,11]]"
    tiny = ("checkpoint=tiny_llama", "wandb.mode=disabled", "inputs=token_ids", inputs, "reference={compile:off}")
    asked = ("compile=inductor", "dtype=bfloat16", f"output_dir={tmp_path}", "sweep=s", "latency_repeats=0")
    assert carry_out(request_of(*tiny, *asked)) == 0
    folder = tmp_path / "single" / "s"
    (record,) = Store(folder).records()
    assert record.verdict is not None
    assert record.verdict.kind == "semantic", record.verdict.reason
    cause = record.verdict.cause
    assert cause is not None
    assert cause.put_back == "compile=off"
    assert cause.closed_bitwise
    explained = explain_cell(folder, record.cell_id)
    assert explained.put_back == "compile=inductor_precise_casts"
    assert explained.closed_bitwise
