from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sweeper.config import (
    Attention,
    Batch,
    Cell,
    Compile,
    Decode,
    Dtype,
    FolderCheckpoint,
    Head,
    Inputs,
    Layout,
    LoadStrategy,
    Pooling,
    Positions,
    SeededCheckpoint,
    Settings,
    parse,
)
from sweeper.environment import environment
from sweeper.models.weights import WeightsKey
from sweeper.planning.grid import SweepRequest
from sweeper.planning.plan import CellIds, Plan, make_plan
from sweeper.reports.plan import print_plan

ENVIRONMENT = environment("cpu")

CELL = parse(
    Cell,
    {
        "checkpoint": {
            "source": "seeded",
            "name": "tiny",
            "architecture": "llama",
            "geometry": {"hidden_size": 64},
            "head": "causal_lm",
            "pooling": "last_token",
            "causal": True,
        },
        "load_strategy": "dtype_at_load",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "layout": "padded_left",
        "positions": "explicit",
        "use_cache": False,
        "numerics": {"name": "default"},
        "inputs": {"name": "two", "texts": ["one", "and two"]},
        "device": "cpu",
    },
)

FLOAT32_EAGER = {"dtype": Dtype.FLOAT32, "attention": Attention.EAGER}


def cells_of(**axes: list[Any]) -> tuple[Cell, ...]:
    return tuple(
        CELL.model_copy(update=dict(zip(axes, values, strict=True))) for values in itertools.product(*axes.values())
    )


def checkpoint(name: str, seed: int = 0) -> SeededCheckpoint:
    return CELL.checkpoint.model_copy(update={"name": name, "seed": seed})


def cell_id(cell: Cell, identity: dict[str, Any]) -> str:
    return CellIds(identity).of(cell)


def request(cells: tuple[Cell, ...], reference: dict[str, Any], **settings: Any) -> SweepRequest:
    return SweepRequest(
        grid="mine", settings=Settings(**settings), cells=cells, reference=reference, excluded=(), config={}
    )


def plan_of(cells: tuple[Cell, ...], reference: dict[str, Any] = FLOAT32_EAGER, **settings: Any) -> Plan:
    return make_plan(request(cells, reference, **settings), ENVIRONMENT)


def printed(plan: Plan) -> str:
    out = io.StringIO()
    print_plan(plan, Console(file=out, width=200))
    return out.getvalue()


def runs(values: list[Any]) -> int:
    return len(list(itertools.groupby(values)))


def test_every_axis_and_the_environment_change_the_cell_id() -> None:
    identity = {"torch": "2.13.0", "device": "cpu"}
    others = {
        "checkpoint": checkpoint("tiny", seed=1),
        "load_strategy": LoadStrategy.AUTOCAST,
        "dtype": Dtype.FLOAT16,
        "attention": Attention.EAGER,
        "layout": Layout.PACKED,
        "positions": Positions.IMPLICIT,
        "use_cache": True,
        "numerics": CELL.numerics.model_copy(update={"deterministic": True}),
        "inputs": CELL.inputs.model_copy(update={"batch_size": 1}),
        "device": "cuda",
        "batch": Batch.ALONE,
        "compile": Compile.INDUCTOR,
        "decode": Decode.TOKENS,
    }
    assert set(others) == set(Cell.model_fields)
    ids = [cell_id(CELL, identity), cell_id(CELL, identity | {"torch": "2.14.0"})]
    ids += [cell_id(CELL.model_copy(update={axis: value}), identity) for axis, value in others.items()]
    assert len(set(ids)) == len(ids)
    assert all(len(word) == 12 and int(word, 16) >= 0 for word in ids)


def test_the_cell_id_does_not_depend_on_the_order_of_keys() -> None:
    again = parse(Cell, dict(reversed(CELL.model_dump(mode="json").items())))
    assert cell_id(again, {"a": 1, "b": 2}) == cell_id(CELL, {"b": 2, "a": 1})


@settings(deadline=None, max_examples=30)
@given(
    dtypes=st.sets(st.sampled_from(list(Dtype)), min_size=1),
    strategies=st.sets(st.sampled_from(list(LoadStrategy)), min_size=1),
    reference=st.fixed_dictionaries(
        {}, optional={"dtype": st.sampled_from(list(Dtype)), "load_strategy": st.sampled_from(list(LoadStrategy))}
    ),
)
def test_a_reference_is_the_candidate_with_the_reference_axes(
    dtypes: set[Dtype], strategies: set[LoadStrategy], reference: dict[str, Any]
) -> None:
    cells = cells_of(dtype=sorted(dtypes), load_strategy=sorted(strategies))
    plan = plan_of(cells, reference)
    assert {planned.cell for planned in plan.cells} == set(cells)
    for planned in plan.cells:
        for axis in Cell.model_fields:
            assert getattr(planned.reference, axis) == reference.get(axis, getattr(planned.cell, axis))
        assert (planned.reference_id == planned.cell_id) == (planned.reference == planned.cell)


def test_what_belongs_together_runs_together() -> None:
    cells = cells_of(
        attention=[Attention.EAGER, Attention.SDPA],
        dtype=[Dtype.BFLOAT16, Dtype.FLOAT16],
        load_strategy=[LoadStrategy.DTYPE_AT_LOAD, LoadStrategy.CAST_AFTER_LOAD],
        checkpoint=[checkpoint("one"), checkpoint("two")],
    )
    plan = plan_of(cells, {"attention": Attention.EAGER, "load_strategy": LoadStrategy.DTYPE_AT_LOAD})
    assert runs([planned.cell.checkpoint.name for planned in plan.cells]) == 2
    assert runs([planned.reference_id for planned in plan.cells]) == plan.reference_count == 4
    assert runs([(planned.reference_id, planned.cell.load_strategy) for planned in plan.cells]) == 8
    assert plan.weight_reads == 6  # bfloat16, float16, and float32 for what is cast


def test_autocast_shares_the_weights_of_float32() -> None:
    cells = cells_of(load_strategy=[LoadStrategy.AUTOCAST], dtype=[Dtype.BFLOAT16])
    assert plan_of(cells, {"dtype": Dtype.FLOAT32, "load_strategy": LoadStrategy.DTYPE_AT_LOAD}).weight_reads == 1


def test_strategies_that_differ_in_the_last_cast_share_what_is_read() -> None:
    cells = cells_of(load_strategy=list(LoadStrategy), dtype=[Dtype.FLOAT32, Dtype.BFLOAT16])
    plan = plan_of(cells, {"dtype": Dtype.FLOAT32, "load_strategy": LoadStrategy.DTYPE_AT_LOAD})
    assert plan.weight_reads == 5  # float32, bfloat16, auto, and device_map in both dtypes


def test_on_a_gpu_a_cast_before_the_move_is_read_for_itself() -> None:
    before = [
        CELL.model_copy(update={"load_strategy": LoadStrategy.CAST_BEFORE_MOVE, "device": "cuda", "dtype": d})
        for d in (Dtype.FLOAT32, Dtype.BFLOAT16, Dtype.FLOAT16)
    ]
    assert len({WeightsKey.of(cell).read for cell in before}) == 3


def test_a_cell_that_cannot_run_says_why_and_so_does_one_whose_reference_cannot() -> None:
    flash = plan_of(cells_of(attention=[Attention.FLASH_ATTENTION_2, Attention.EAGER]))
    assert [planned.unsupported is None for planned in flash.cells] == [False, True]
    candidate = plan_of((CELL,), {"attention": Attention.FLASH_ATTENTION_2}).cells[0]
    assert candidate.unsupported is not None
    assert candidate.unsupported.startswith("its reference cannot run: ")


def test_the_same_cells_in_another_order_find_the_same_folder() -> None:
    cells = cells_of(dtype=[Dtype.BFLOAT16, Dtype.FLOAT16])
    plan = plan_of(cells)
    assert plan_of(cells[::-1]).folder == plan.folder
    assert plan_of(cells[:1]).folder != plan.folder
    assert plan_of(cells, {"dtype": Dtype.FLOAT64}).folder != plan.folder
    assert plan.folder == Path("outputs/mine") / plan.sweep
    assert plan.sweep.startswith("tiny-cpu-")


def test_a_given_sweep_name_is_the_folder() -> None:
    assert plan_of((CELL,), sweep="again", output_dir="elsewhere").folder == Path("elsewhere/mine/again")


def test_names_that_are_no_file_names_are_made_ones() -> None:
    sweep = plan_of(cells_of(checkpoint=[checkpoint("hub+repo_id=me/my model")])).sweep
    assert sweep.startswith("hub+repo_id=me_my_model-cpu-")
    assert plan_of(cells_of(checkpoint=[checkpoint(name) for name in "abc"])).sweep.startswith("3_checkpoints-cpu-")


def test_the_printed_plan_shows_cells_references_and_what_is_left_out() -> None:
    cells = cells_of(dtype=[Dtype.FLOAT32, Dtype.BFLOAT16], attention=[Attention.EAGER, Attention.FLASH_ATTENTION_2])
    text = printed(plan_of(cells))
    assert "all cells: checkpoint=tiny, load_strategy=dtype_at_load, layout=padded_left" in text
    assert "itself" in text
    assert "dtype=float32" in text
    assert "unsupported, 2 cells: " in text or text.count("unsupported, 1 cells: ") == 2
    assert "2 cells to run, 2 unsupported, 0 excluded; 1 references; weights read 2 times" in text


def test_a_large_plan_is_cut_after_its_first_rows() -> None:
    text = printed(plan_of(cells_of(checkpoint=[checkpoint("tiny", seed) for seed in range(250)])))
    assert "... and 50 more cells" in text
    assert "250 cells to run" in text


@pytest.mark.parametrize("reference", [{}, {"dtype": Dtype.BFLOAT16}])
def test_a_cell_that_is_its_own_reference_is_planned_like_any_other(reference: dict[str, Any]) -> None:
    planned = plan_of((CELL,), reference).cells[0]
    assert planned.cell_id == planned.reference_id


def test_an_edited_file_of_texts_is_another_cell_under_the_same_path(tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    cell = CELL.model_copy(update={"inputs": Inputs(name="mine", file=str(path))})
    ids = []
    for text in ("one", "two three"):
        path.write_text(text)
        ids.append(cell_id(cell, {}))
    assert ids[0] != ids[1] == cell_id(cell, {})


def test_other_weights_in_the_same_folder_are_another_cell(tmp_path: Path) -> None:
    source = FolderCheckpoint(source="folder", name="mine", head=Head.BASE, pooling=Pooling.MEAN, path=str(tmp_path))
    cell = CELL.model_copy(update={"checkpoint": source})
    ids = []
    for weights in (b"old", b"newer"):
        (tmp_path / "model.safetensors").write_bytes(weights)
        ids.append(cell_id(cell, {}))
    (tmp_path / "notes.md").write_text("not read by any cell")
    assert ids[0] != ids[1] == cell_id(cell, {})
