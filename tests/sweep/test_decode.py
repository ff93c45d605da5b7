"""The axis `decode`: steps behind a cache give the whole text's rows, module by module, whatever shares the batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sweeper.cli.explain import explain_cell
from sweeper.cli.run import carry_out
from sweeper.comparator.calling import of_calls
from sweeper.comparator.observation import observe
from sweeper.comparator.side import Side
from sweeper.config import Decode
from sweeper.environment import environment
from sweeper.errors import UnsupportedError
from sweeper.inputs.calls import Decoding, call_of
from sweeper.inputs.layout import in_steps, step_bounds
from sweeper.models.caches import new_cache
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import Store
from sweeper.sweep.runner import Runner
from sweeper.verdict.discrete_choices import run_with_selections
from tests.composing import request_of
from tests.tiny_folders import plain

TEXTS = [list(range(5, 25)), [30, 31, 32], list(range(40, 58)), [60]]
TINY = ("checkpoint=tiny_llama", "wandb.mode=disabled", "inputs=token_ids", f"inputs.token_ids={TEXTS}")
STEPS = ",".join(decode for decode in Decode if not decode.endswith("quantised"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def plan_of(tmp_path: Path, *arguments: str) -> Plan:
    return make_plan(request_of(*TINY, f"output_dir={tmp_path}", *arguments), environment("cpu"))


def run(
    tmp_path: Path, *arguments: str, kept_bytes: int = 2**30
) -> dict[str, tuple[CellRecord, tuple[ModuleRecord, ...]]]:
    plan = plan_of(tmp_path, *arguments)
    running = Runner(plan.environment, latency_repeats=1, verdict=False, kept_bytes=kept_bytes, say=print)
    return {str(planned.cell.axes()["decode"]): running.run(planned) for planned in plan.cells}


@pytest.mark.parametrize("kept_bytes", [2**30, 1])
@pytest.mark.parametrize(
    "options",
    [
        ("layout=padded_left", "attention=eager"),
        ("layout=padded_right", "attention=sdpa"),
        ("layout=padded_left", "positions=implicit"),
        ("layout=single", "attention=eager"),
        ("layout=padded_left", "batch=of_2_sorted"),
        ("checkpoint=tiny_qwen3", "layout=padded_left"),
    ],
)
def test_every_row_of_every_module_meets_its_own(tmp_path: Path, options: tuple[str, ...], kept_bytes: int) -> None:
    """Steps move nothing but the last bits in float64; a row that met another's would be far off."""
    options = ("dtype=float64", "reference={decode:whole}", *options)
    records = run(tmp_path, f"decode={STEPS}", *options, kept_bytes=kept_bytes)
    assert list(records) == STEPS.split(",")
    whole = [module.name for module in records["whole"][1]]
    for decode, (record, modules) in records.items():
        assert record.reason is None, (decode, record.traceback)
        assert record.output is not None
        assert record.output.rel_l2 < 1e-6  # transformers' norms and tables compute in float32
        assert record.output.numel % sum(map(len, TEXTS)) == 0
        assert [module.name for module in modules] == whole
        assert max(module.measures.rel_l2 for module in modules) < 1e-5
        assert max(text.embedding_max_abs for text in record.texts) < 1e-4
        assert record.cost is not None
        assert record.cost.repeatable


def test_a_step_that_holds_all_is_told(tmp_path: Path) -> None:
    ids = "inputs.token_ids=[[1,2,3],[4,5]]"
    (record, _), *_ = run(tmp_path, "decode=chunks_of_16", ids).values()
    assert record.without_effect["decode"].startswith("each forward is one step")
    (record, _), *_ = run(tmp_path, "decode=tokens_static", "layout=padded_left").values()  # a text of one token
    assert record.without_effect["decode"].startswith("each forward is one step")
    longer = f"inputs.token_ids=[[1,2,3],{list(range(20))}]", "inputs.batch_size=1"  # in the second batch
    (record, _), *_ = run(tmp_path, "decode=chunks_of_16", *longer).values()
    assert "decode" not in record.without_effect


def test_explain_puts_it_back_alone(tmp_path: Path) -> None:
    arguments = ("decode=tokens", "layout=single", "dtype=bfloat16", "numerics.deterministic=true", "latency_repeats=0")
    reference = "reference={decode:whole,numerics:default}"
    assert carry_out(request_of(*TINY, *arguments, reference, f"output_dir={tmp_path}", "sweep=s")) == 0
    folder = tmp_path / "single" / "s"
    (record,) = Store(folder).records()
    assert record.verdict is not None
    assert record.verdict.kind == "rounding", record.verdict
    explained = explain_cell(folder, record.cell_id)
    assert explained.put_back == "decode=whole"
    assert explained.closed_bitwise
    assert explained.cause.startswith("decode: whole -> tokens")


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_a_quantised_cache_is_another_function_and_the_cause(tmp_path: Path, dtype: str) -> None:
    """No precision makes up for four bits, nor does the replay; the same steps with a cache that keeps all do."""
    pytest.importorskip("optimum.quanto")
    arguments = (f"dtype={dtype}", "decode=tokens_quantised,chunks_of_16_quantised", "layout=single")
    request = request_of(*TINY, *arguments, "reference={decode:whole}", f"output_dir={tmp_path}", "sweep=s")
    assert carry_out(request) == 0
    records = list(Store(tmp_path / "single" / "s").records())
    assert len(records) == 2
    for record in records:
        assert record.verdict is not None
        assert record.verdict.kind == "semantic", record.verdict
        evidence = {one.name: one.value for one in record.verdict.evidence}
        assert float(evidence["replay rel_l2"]) > 1e-3
        first, *_, last = map(float, str(evidence["replay rel_l2 by position"]).split(", "))
        assert first < 1e-12 < 1e-3 < last  # the first token reads no cache
        assert record.verdict.cause is not None
        kept = str(record.verdict.cause.put_back).removeprefix("decode=")
        assert kept in ("tokens", "chunks_of_16")
        assert record.verdict.cause.what == f"decode: {kept} -> {kept}_quantised"
        assert record.cost is not None
        assert record.cost.repeatable


def test_a_quantised_cache_unpacks_what_was_packed() -> None:
    pytest.importorskip("optimum.quanto")
    from optimum.quanto.tensor.packed import PackedTensor

    model = plain("llama", dtype=torch.float32)
    model.config.head_dim = 32
    new_cache(model, "quantised", 8)
    for bits in (2, 4):
        integers = torch.randint(0, 2**bits, (7, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        assert torch.equal(PackedTensor.pack(integers, bits).unpack(), integers)


def test_what_a_quantised_cache_cannot_keep_is_said() -> None:
    pytest.importorskip("optimum.quanto")
    narrow, windowed = plain("llama", dtype=torch.float32), plain("gemma2", dtype=torch.float32)
    narrow.config.head_dim = 24
    with pytest.raises(UnsupportedError, match="keeps groups of 64 numbers, and a token has 48 keys here"):
        new_cache(narrow, "quantised", 8)
    with pytest.raises(UnsupportedError, match="transformers has no quantised cache for this model"):
        new_cache(windowed, "quantised", 8)


def test_what_cannot_be_read_in_steps_is_said(tmp_path: Path) -> None:
    (packed,) = plan_of(tmp_path, "decode=tokens", "layout=packed").cells
    assert packed.unsupported == "a cache cannot keep packed texts apart; use decode=whole or a padded layout"
    (compiled,) = plan_of(tmp_path, "decode=tokens", "compile=inductor").cells
    assert "compiled anew" in str(compiled.unsupported)
    (quantised,) = plan_of(tmp_path, "decode=tokens_quantised").cells
    assert "optimum-quanto" in (quantised.unsupported or "optimum-quanto")
    encoder = plan_of(tmp_path, "decode=tokens", "checkpoint=tiny_bert")
    assert [planned.cell.decode for planned in encoder.cells] == [Decode.WHOLE]
    assert "decode has no meaning for tiny_bert: an encoder has no key-value cache" in encoder.dropped


def test_the_steps_of_a_block_hold_each_token_once() -> None:
    mask_BT = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    call = call_of({"input_ids": mask_BT, "attention_mask": mask_BT}, torch.nn.Identity(), mask_BT.bool())
    steps = in_steps(call.forward, step_bounds(call.forward, 2))
    assert [step.shape for step in steps] == [(2, 3), (2, 2)]  # no step without a token in a row
    assert [step.place_N.tolist() for step in steps] == [[0, 3, 4, 5], [1, 2, 6, 7]]
    assert [step.flat_N.tolist() for step in steps] == [[2, 3, 4, 5], [0, 1, 2, 3]]
    assert [step.lengths for step in steps] == [(1, 3), (2, 2)]
    assert [step.shape for step in in_steps(call.forward, step_bounds(call.forward, 5))] == [(2, 5)]


def side_of(model: torch.nn.Module, decoding: Decoding | None) -> Side:
    ids_BT = torch.tensor([[0, 0, 7, 8, 9], [3, 4, 5, 6, 7]])
    mask_BT = (ids_BT > 0).long()
    position_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    kwargs = {"input_ids": ids_BT, "attention_mask": mask_BT, "position_ids": position_BT, "use_cache": False}
    call = call_of(kwargs, model, mask_BT.bool())
    return Side(model, (type(call)(call.kwargs, call.forward, decoding),))


def test_one_text_of_a_call_is_looked_at_in_the_call_s_own_steps() -> None:
    model = plain("llama", dtype=torch.float32)
    (call,) = side_of(model, Decoding(1, "dynamic")).calls
    bounds = call.step_bounds
    texts = [call.of_text(0), call.of_text(1)]
    assert bounds == (0, 3, 4, 5)  # the second text alone would be read column by column
    assert [text.step_bounds for text in texts] == [bounds, bounds]
    assert texts[1].of_rows([1]).step_bounds == (0, 1, 2, 3, 4, 5)
    together = observe(Side(model, (call,)))
    apart = observe(Side(model, tuple(texts)))
    assert apart.modules.keys() == together.modules.keys()
    for name, rows in apart.modules.items():
        assert torch.equal(torch.cat(rows.outputs), torch.cat(together.modules[name].outputs))
    assert torch.equal(apart.outputs["logits"], together.outputs["logits"])


def test_a_router_chooses_for_every_token_in_its_place() -> None:
    model = plain("mixtral", dtype=torch.float32)
    whole, steps = (run_with_selections(side_of(model, decoding)) for decoding in (None, Decoding(2, "dynamic")))
    assert whole
    assert [one.module for one in steps] == [one.module for one in whole]
    assert all(torch.equal(one.index_NK, other.index_NK) for one, other in zip(whole, steps, strict=True))


def test_leaf_modules_run_on_the_reference_rows_in_their_places() -> None:
    model = plain("llama", dtype=torch.float64)
    reference = observe(side_of(model, None))
    steps = observe(side_of(model, Decoding(2, "dynamic")), reference.inputs())
    assert steps.modules.keys() == reference.modules.keys()
    for name, rows in steps.modules.items():
        if rows.owns and "rotary" not in name:
            torch.testing.assert_close(torch.cat(rows.owns), torch.cat(reference.modules[name].outputs))
            torch.testing.assert_close(torch.cat(rows.inputs), torch.cat(reference.modules[name].inputs))
    again = observe(side_of(model, Decoding(2, "dynamic")))
    assert torch.equal(again.outputs["logits"], steps.outputs["logits"])  # a new cache


def test_what_is_kept_of_each_step_becomes_that_of_the_call() -> None:
    model = torch.nn.Identity()
    calls = [*side_of(model, Decoding(2, "dynamic")).calls, *side_of(model, None).calls]
    kept = [torch.full((2, 3, 1), 1.0), torch.full((2, 2, 1), 2.0), torch.zeros(2, 5, 1)]
    steps, whole = of_calls(kept, calls)
    assert steps[0, :, 0].tolist() == [1, 1, 1, 2, 2]
    assert whole.shape == (2, 5, 1)
