from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sweeper.cli.explain import explain_cell
from sweeper.config import Batch, Cell
from sweeper.environment import environment
from sweeper.errors import UnsupportedError
from sweeper.inputs.batching import forwards_of
from sweeper.inputs.texts import batches
from sweeper.models.conditions import switches
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import CellRecord, TextFigures
from sweeper.records.store import Store
from sweeper.records.verdict import VerdictRecord
from sweeper.reports.answer import answer
from sweeper.sweep import run as app
from sweeper.sweep.exit_code import exit_code
from sweeper.sweep.judging import telling_texts
from sweeper.sweep.runner import Runner
from sweeper.verdict import reference_evidence
from sweeper.verdict.comparison import Comparison
from tests.composing import request_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def plan_of(tmp_path: Path, *arguments: str, device: str = "cpu") -> Plan:
    tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path}")
    return make_plan(request_of(*tiny, f"device={device}", *arguments), environment(device))


def compared(tmp_path: Path, *arguments: str, device: str = "cpu") -> Comparison:
    """One cell and its reference on both texts of report 2."""
    plan = plan_of(tmp_path, *arguments, device=device)
    (planned,) = plan.cells
    return Runner(plan.environment, say=print).comparison(planned, (0, 1))


def verdict(tmp_path: Path, *arguments: str) -> VerdictRecord:
    plan = plan_of(tmp_path, *arguments)
    (planned,) = plan.cells
    record, _ = Runner(plan.environment, say=print).run(planned)
    assert record.verdict is not None, record.reason
    return record.verdict


def figures(*moved: float, tokens: tuple[int, ...] = ()) -> list[TextFigures]:
    rest = {"output_equal_fraction": 0.5, "output_cosine": 1.0}
    embedding = {"embedding_cosine": 1.0, "embedding_max_abs": 0.0, "embedding_mean_abs": 0.0}
    tokens = tokens or (1,) * len(moved)
    return [
        TextFigures(text=i, tokens=tokens[i], output_max_abs=max_abs, **rest, **embedding)
        for i, max_abs in enumerate(moved)
    ]


@pytest.mark.parametrize(
    ("moved", "tokens", "batch_size", "expected"),
    [
        ((1.0,), (1,), 8, [(0,)]),
        ((3.0, 1.0), (1, 1), 8, [(0, 1)]),
        ((3.0, 1.0, 2.0), (1, 1, 1), 8, [(0, 1), (0, 1, 2)]),
        ((3.0, 1.0, 4.0), (5, 7, 7), 2, [(0, 1), (0, 2)]),
        ((0.0, 9.0, 1.0, 2.0), (5, 5, 7, 3), 4, [(0, 2), (0, 1, 2, 3)]),
        ((0.0, 9.0, 1.0, 9.5), (5, 5, 7, 3), 2, [(0, 2), (0, 1), (0, 3), (2, 3)]),
        ((0.0, 1.0, float("nan"), 9.0), (5, 6, 5, 6), 2, [(0, 1), (0, 2), (2, 3)]),
    ],
)
def test_two_texts_by_length_alone_then_the_batch_then_what_moved_most_then_its_batch(
    moved: tuple[float, ...], tokens: tuple[int, ...], batch_size: int, expected: list[tuple[int, ...]]
) -> None:
    grouped = batches([[1] * length for length in tokens], batch_size)
    assert telling_texts(figures(*moved, tokens=tokens), grouped) == expected


@pytest.mark.parametrize("batch", ["of_2_sorted", "of_8_sorted", "of_32_sorted"])
def test_a_group_of_many_texts_is_judged_on_the_forward_of_the_text_that_moved_most(batch: str) -> None:
    tokens = tuple(1 + 7 * text % 97 for text in range(1000))
    most = 321
    moved = [float(text == most) for text in range(1000)]
    telling = telling_texts(figures(*moved, tokens=tokens), [tuple(range(1000))])
    assert max(map(len, telling)) == 64
    cell = Cell.model_construct(batch=Batch(batch))
    token_ids = [[1] * length for length in tokens]
    (forward,) = (texts for texts in forwards_of(cell, token_ids) if most in texts)
    assert forward in forwards_of(cell, token_ids, telling[-1])


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("load_strategy=cast_after_load", "reference={load_strategy:dtype_at_load}"), "policy"),
        (("layout=packed", "use_cache=true", "reference={layout:padded_left,use_cache:false}"), "semantic"),
        (("dtype=bfloat16",), "rounding"),
        (("load_strategy=autocast",), "rounding"),
        (("attention=sdpa_math", "reference={attention:eager}"), "rounding"),
        (("dtype=float32", "attention=eager"), "identical"),
    ],
)
def test_the_verdict_of_a_cell(tmp_path: Path, arguments: tuple[str, ...], kind: str) -> None:
    found = verdict(tmp_path, *arguments)
    assert found.kind == kind
    assert bool(found.evidence) is (kind != "identical")


@pytest.mark.parametrize("checkpoint", ["tiny_llama", "tiny_bert"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("dtype=bfloat16", "attention=sdpa"),
        ("dtype=float32", "attention=sdpa", "reference={attention:eager}"),
        ("load_strategy=autocast",),
    ],
)
def test_modules_are_examined_beside_the_pooling_of_embeddings(
    tmp_path: Path, checkpoint: str, arguments: tuple[str, ...]
) -> None:
    """The base model, which gives the hidden states that are pooled, is itself run on the reference's arguments."""
    found = verdict(tmp_path, f"checkpoint={checkpoint}", *arguments)
    assert found.kind == "rounding"
    (examined,) = (one for one in found.evidence if one.name == "examined")
    assert isinstance(examined.value, float)
    assert examined.value > 10, examined.meaning


def test_a_fault_of_one_module_that_outputs_hide_is_found_in_a_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module's result is a tenth too large, which the residual stream hides from the outputs."""

    def comparison(self: Runner, planned: Any, texts: Any) -> Any:
        loaded: Any = self._held.loaded(planned.cell).model
        block = loaded.model.layers[1].mlp.down_proj
        handle = block.register_forward_hook(lambda _module, _args, output: larger(output))
        try:
            return compare(self, planned, texts)
        finally:
            handle.remove()

    def larger(output: torch.Tensor) -> torch.Tensor:
        return output if output.dtype is torch.float64 else output * 1.1

    compare = Runner.comparison
    monkeypatch.setattr(Runner, "comparison", comparison)
    found = verdict(tmp_path, "dtype=bfloat16")
    assert found.kind == "semantic", found
    assert "layers.1.mlp.down_proj" in found.reason


def records(tmp_path: Path, *arguments: str, **settings: Any) -> tuple[Runner, list[CellRecord]]:
    plan = plan_of(tmp_path, *arguments)
    running = Runner(plan.environment, say=print, **settings)
    return running, [running.run(planned)[0] for planned in plan.cells]


LOADS = "load_strategy=dtype_at_load,device_map,cast_after_load,cast_before_move,auto_then_cast"


def test_cells_with_the_same_bits_are_judged_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []
    compare = Runner.comparison

    def comparison(self: Runner, planned: Any, texts: Any) -> Any:
        judged.append(planned.cell_id)
        return compare(self, planned, texts)

    monkeypatch.setattr(Runner, "comparison", comparison)
    _, found = records(tmp_path, LOADS, "reference={dtype:float32,load_strategy:dtype_at_load}")
    verdicts = [record.verdict for record in found]
    assert [verdict and str(verdict.kind) for verdict in verdicts] == ["rounding", "rounding", *["policy"] * 3]
    first, third = found[0].cell_id, found[2].cell_id
    assert judged == [first, third]
    assert [verdict and verdict.same_as for verdict in verdicts] == [None, first, None, third, third]
    assert verdicts[1]
    assert verdicts[1].evidence == (verdicts[0] and verdicts[0].evidence)


def test_another_value_in_the_state_or_the_output_is_judged_itself(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "load_strategy=dtype_at_load,device_map", "reference={dtype:float32}")
    running = Runner(plan.environment, say=print)
    running.run(plan.cells[0])
    model: Any = running._held.loaded(plan.cells[1].cell).model
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1
    verdict = running.run(plan.cells[1])[0].verdict
    assert verdict is not None
    assert (verdict.kind, verdict.same_as) == ("semantic", None)


def test_a_reference_is_run_once_for_all_its_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replays: list[str] = []
    replayed = reference_evidence.replayed

    def counted(side: Any, *more: Any) -> Any:
        replays.append("reference")
        return replayed(side, *more)

    monkeypatch.setattr(reference_evidence, "replayed", counted)
    grid = "attention=eager,sdpa", "load_strategy=dtype_at_load,cast_after_load"
    reference = "reference={dtype:float32,load_strategy:dtype_at_load,attention:eager}"
    running, found = records(tmp_path, *grid, reference)
    assert {record.verdict and record.verdict.same_as for record in found} == {None}
    assert len(replays) == 2  # the replay, and its noise
    together = [record.verdict for record in found]
    plan = plan_of(tmp_path, *grid, reference)
    alone = [Runner(plan.environment, say=print).run(planned)[0].verdict for planned in plan.cells]
    assert [verdict and verdict.kind for verdict in together] == [verdict and verdict.kind for verdict in alone]
    running._forget(plan.cells[0])
    assert not running._evidence


def test_what_was_not_gathered_is_said_and_full_gathers_it(tmp_path: Path) -> None:
    (few,), (full,) = (
        records(tmp_path, "dtype=bfloat16", "reference={dtype:float32}", verdict=verdict)[1]
        for verdict in (True, "full")
    )
    assert few.verdict is not None
    assert full.verdict is not None
    assert few.verdict.kind == full.verdict.kind == "rounding"
    names = [{evidence.name for evidence in record.evidence} for record in (few.verdict, full.verdict)]
    assert "left out" in names[0]
    assert "left out" not in names[1]
    assert names[0] - {"left out"} < names[1]
    assert (few.verdict.complete, full.verdict.complete) == (False, True)
    store = Store(tmp_path / "sweep")
    store.open({})
    store.write(few, ())
    assert store.finished(few.cell_id, judged=True) is not None
    assert store.finished(few.cell_id, judged="full") is None
    store.write(full, ())
    assert store.finished(few.cell_id, judged="full") == full


def test_a_cell_whose_judging_fails_keeps_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no such kernel")

    monkeypatch.setattr(Runner, "comparison", broken)
    found = verdict(tmp_path)
    assert (found.kind, found.reason) == ("inconclusive", "could not be judged: ValueError: no such kernel")


def test_judging_gets_the_memory_of_a_kept_reference_where_it_has_too_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare = Runner.comparison
    kept: list[weakref.ref[object]] = []
    alive: list[bool] = []

    def comparison(self: Runner, *arguments: Any) -> Any:
        if not kept:
            assert self._reference_runs.reference is not None
            kept.extend(
                map(
                    weakref.ref,
                    [self._reference_runs.reference, *(loaded.model for loaded in self._held._pool._models.values())],
                )
            )
            raise torch.OutOfMemoryError("CUDA out of memory")
        alive.extend(what() is not None for what in kept)
        return compare(self, *arguments)

    monkeypatch.setattr(Runner, "comparison", comparison)
    assert verdict(tmp_path, "dtype=bfloat16").kind == "rounding"
    assert alive == [False] * 3


def test_judging_tries_the_shortest_text_alone_before_it_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[tuple[int, ...]] = []

    def comparison(_self: Runner, _planned: Any, texts: Any) -> Any:
        tried.append(tuple(texts))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")

    monkeypatch.setattr(Runner, "comparison", comparison)
    (record,) = records(tmp_path, "dtype=bfloat16")[1]
    assert [len(texts) for texts in tried] == [2, 2, 1, 2, 1]
    assert set(tried[2]) < set(tried[0])
    assert (record.status, record.verdict) == ("ok", None)
    assert record.output is not None
    assert record.unjudged is not None
    assert record.unjudged.startswith("memory ran out, streamed and on ")
    assert "type shorter texts (inputs=...)" in record.unjudged
    assert "Tried to allocate" not in record.unjudged
    assert not Store(tmp_path).need_not_run(record, judged=True)  # the same command judges it
    (line, *_) = answer([record], tmp_path)
    assert line.end == "not judged"
    assert record.unjudged in line.text
    assert exit_code([record], ("failed", "semantic"), tmp_path) == (0, [])
    assert exit_code([record], ("inconclusive",), tmp_path)[0] == 1


class Allocations(TorchDispatchMode):
    """Counts operations; the n-th finds no memory."""

    def __init__(self, fails: int | None = None) -> None:
        super().__init__()
        self.fails, self.count = fails, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        if self.count == self.fails:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("asked", ["load_strategy=cast_after_load", "dtype=bfloat16"])
def test_wherever_memory_runs_out_the_verdict_is_the_same(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tmp_path, "dtype=bfloat16", "reference={load_strategy:dtype_at_load,dtype:bfloat16}", asked)
    if asked == "dtype=bfloat16":
        plan = plan_of(tmp_path, asked)
    (planned,) = plan.cells
    judge = Runner._judge_on
    allocations = Allocations()

    def judged(self: Runner, *arguments: Any, **options: Any) -> Any:
        with allocations:
            return judge(self, *arguments, **options)

    monkeypatch.setattr(Runner, "_judge_on", judged)
    expected = Runner(plan.environment, say=print).run(planned)[0].verdict
    operations = allocations.count
    assert operations > 1000
    for fails in range(7, operations, operations // 6):
        allocations = Allocations(fails)
        record, _ = Runner(plan.environment, say=print).run(planned)
        assert allocations.count > fails
        assert record.verdict == expected
        assert record.unjudged is None


FLOAT32 = "reference={load_strategy:dtype_at_load,dtype:float32}"


@pytest.mark.parametrize(
    ("arguments", "cause", "fix"),
    [
        (
            ("attention=sdpa_math", "numerics.deterministic=true", "reference={attention:sdpa_flash,numerics:default}"),
            "SDPA kernel: flash -> math",
            "attention=sdpa_flash",
        ),
        (
            ("attention=eager", "load_strategy=autocast", "numerics.deterministic=true", FLOAT32),
            "autocast: off -> bfloat16",
            "load_strategy=dtype_at_load dtype=float32",
        ),
        (
            ("attention=eager", "load_strategy=autocast", "reference={dtype:float16}"),
            "autocast: float16 -> bfloat16",
            "load_strategy=autocast dtype=float16",
        ),
    ],
)
def test_one_switch_of_several_is_named_with_what_to_type(
    tmp_path: Path, arguments: tuple[str, ...], cause: str, fix: str
) -> None:
    explanation = compared(tmp_path, *arguments).explain()
    assert explanation.closing is not None
    assert (explanation.closing.name, explanation.closing.fix) == (cause, fix)
    assert explanation.closing.bitwise
    assert explanation.cause.startswith(cause)


def test_a_flag_that_changes_nothing_is_run_and_closes_nothing(tmp_path: Path) -> None:
    explanation = compared(
        tmp_path, "numerics.deterministic=true", "reference={numerics:default,dtype:float32}"
    ).explain()
    (flag,) = [tried for tried in explanation.tried if tried.name == "numerics.deterministic: default -> true"]
    assert flag.fix == "numerics.deterministic=null"
    assert flag.native_closed == 0


def test_autocast_and_a_kernel_are_put_back_as_a_pair(tmp_path: Path) -> None:
    reference = "reference={load_strategy:dtype_at_load,dtype:float32,attention:sdpa_flash}"
    explanation = compared(tmp_path, "load_strategy=autocast", "attention=sdpa_math", reference).explain()
    assert explanation.closing is not None
    assert explanation.closing.bitwise
    assert {"autocast: off -> bfloat16", "SDPA kernel: flash -> math"} == set(explanation.closing.name.split("; and "))


def test_a_flag_without_effect_on_this_device_is_no_switch(tmp_path: Path) -> None:
    (planned,) = plan_of(tmp_path, "numerics.matmul_tf32=true", "numerics.deterministic=true").cells
    values = {name: switch.value for name, switch in switches(planned.cell).items() if switch.value != "default"}
    expected = {"numerics.deterministic": "true", "SDPA kernel": "not pinned", "autocast": "off", "compile": "off"}
    assert values == expected


def test_what_is_typed_to_put_a_switch_back_is_what_the_command_line_takes(tmp_path: Path) -> None:
    chosen = ("load_strategy=autocast", "attention=sdpa_math", "numerics.deterministic=true")
    (plain,), (other,) = plan_of(tmp_path, "dtype=float32").cells, plan_of(tmp_path, *chosen).cells
    for name, switch in switches(plain.cell).items():
        (put_back,) = plan_of(tmp_path, *chosen, *switch.fix.split()).cells
        changed = {**switches(other.cell), name: switch}
        assert {n: s.value for n, s in switches(put_back.cell).items()} == {n: s.value for n, s in changed.items()}


@needs_gpu
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_tf32_is_named_among_other_flags(tmp_path: Path, attention: str) -> None:
    flags = ("numerics.matmul_tf32=true", "numerics.cudnn_tf32=true", "numerics.bf16_reduction=off")
    comparison = compared(
        tmp_path, "dtype=float32", f"attention={attention}", *flags, "reference={numerics:tf32_off}", device="cuda"
    )
    assert comparison.verdict.kind in ("rounding", "inconclusive")
    explanation = comparison.explain()
    assert explanation.closing is not None
    assert explanation.closing.name == "numerics.matmul_tf32: false -> true"
    assert explanation.closing.fix == "numerics.matmul_tf32=false"
    assert explanation.closing.bitwise


def test_pooling_by_count_under_left_padding_is_semantic_and_named(tmp_path: Path) -> None:
    pooled = ("checkpoint.pooling=last_token_by_count", "layout=padded_left", "positions=explicit")
    comparison = compared(tmp_path, *pooled, "reference={layout:single}")
    assert comparison.verdict.kind == "semantic"
    assert comparison.first_divergence is not None
    assert (comparison.first_divergence.module, comparison.first_divergence.text) == ("(pooling)", 1)
    explanation = comparison.explain()
    assert explanation.cause.startswith("pooling: last_token -> last_token_by_count; introduced at (pooling)")
    assert explanation.closing is not None
    assert (explanation.closing.fix, explanation.closing.collapsed) == ("checkpoint.pooling=last_token", True)


def test_pooling_by_count_under_right_padding_is_the_same_function(tmp_path: Path) -> None:
    comparison = compared(
        tmp_path, "checkpoint.pooling=last_token_by_count", "layout=padded_right", "reference={layout:single}"
    )
    assert comparison.verdict.kind in ("identical", "rounding")


def test_explain_names_the_pooling_of_a_cell_that_differs_in_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path}", "sweep=s")
    pooling = ("checkpoint.pooling=last_token_by_count", "reference={checkpoint:tiny_llama}")
    assert app.run(request_of(*tiny, *pooling)) == 0
    folder = tmp_path / "single" / "s"
    (record,) = Store(folder).records()
    assert record.verdict is not None
    assert (record.first_divergence, record.verdict.kind) == (None, "semantic")
    explained = explain_cell(folder, record.cell_id)
    assert explained.cause.startswith("pooling: last_token -> last_token_by_count; introduced at (pooling)")
    assert (explained.put_back, explained.closed_bitwise) == ("checkpoint.pooling=last_token", True)
    assert "SEMANTIC" in capsys.readouterr().out


def test_explain_says_in_a_line_that_memory_ran_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", f"output_dir={tmp_path}", "sweep=s")
    assert app.run(request_of(*tiny, "dtype=bfloat16", "verdict=false", "reference={checkpoint:tiny_llama}")) == 0
    folder = tmp_path / "single" / "s"
    (record,) = Store(folder).records()

    def comparison(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Runner, "comparison", comparison)
    with pytest.raises(UnsupportedError, match=r"memory ran out, which says nothing about it; .*\(inputs=\.\.\.\)"):
        explain_cell(folder, record.cell_id)
    monkeypatch.setattr(Runner, "comparison", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        explain_cell(folder, record.cell_id)
