from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.config import Attention, Dtype, Layout, LoadStrategy, Numerics, Positions
from sweeper.errors import ConfigError
from sweeper.models import axes
from sweeper.planning.grid import DEFAULT_REFERENCE
from tests.composing import request_of, write_grid

TINY = "checkpoint=tiny_llama"

SCALAR_AXES = {
    "dtype": Dtype,
    "load_strategy": LoadStrategy,
    "attention": Attention,
    "layout": Layout,
    "positions": Positions,
}


def labels(request: object, axis: str) -> list[object]:
    return [cell.axes()[axis] for cell in request.cells]  # type: ignore[attr-defined]


def test_without_a_grid_there_is_one_cell() -> None:
    request = request_of(TINY)
    assert request.grid == "single"
    assert len(request.cells) == 1
    assert request.cells[0].axes() | {"device": "cpu"} == {
        "checkpoint": "tiny_llama",
        "load_strategy": "dtype_at_load",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "layout": "padded",
        "positions": "explicit",
        "use_cache": False,
        "numerics": "default",
        "inputs": "sentences",
        "device": "cpu",
        "batch": "inputs",
        "compile": "off",
        "decode": "whole",
    }


@settings(deadline=None, max_examples=8)
@given(
    st.fixed_dictionaries(
        {}, optional={axis: st.lists(st.sampled_from(list(kind)), min_size=1) for axis, kind in SCALAR_AXES.items()}
    )
)
def test_cells_are_the_product_of_the_values_each_once(chosen: dict[str, list[str]]) -> None:
    request = request_of(TINY, *(f"{axis}={','.join(values)}" for axis, values in chosen.items()))
    got = [tuple(getattr(cell, axis) for axis in chosen) for cell in request.cells]
    assert len(got) == len(set(got))
    assert set(got) == set(itertools.product(*chosen.values()))


@pytest.mark.parametrize(
    ("argument", "axis", "expected"),
    [
        ("dtype=choice(float32,float16)", "dtype", ["float32", "float16"]),
        ("use_cache=true,false", "use_cache", [True, False]),
        ("inputs=glob(report_*)", "inputs", ["report_1", "report_2"]),
        ("checkpoint.seed=range(1,3)", "checkpoint", ["tiny_llama+seed=1", "tiny_llama+seed=2"]),
        ("numerics=default,tf32_on", "numerics", ["default", "tf32_on"]),
        ("dtype=[float32,float16]", "dtype", ["float32", "float16"]),
        ("numerics=[default,tf32_on]", "numerics", ["default", "tf32_on"]),
        ("checkpoint.seed=[1,2]", "checkpoint", ["tiny_llama+seed=1", "tiny_llama+seed=2"]),
    ],
)
def test_every_way_of_giving_several_values(argument: str, axis: str, expected: list[object]) -> None:
    assert labels(request_of(TINY, argument), axis) == expected


def test_the_command_line_wins_over_the_params_of_the_grid(tmp_path: Path) -> None:
    conf = write_grid(
        tmp_path, "mine", "hydra: {sweeper: {params: {dtype: 'float32,float16', attention: 'eager,sdpa'}}}\n"
    )
    request = request_of(TINY, "+grid=mine", "dtype=bfloat16", user_conf=conf)
    assert request.grid == "mine"
    assert labels(request, "dtype") == ["bfloat16", "bfloat16"]
    assert labels(request, "attention") == ["eager", "sdpa"]


def test_exclude_takes_a_label_or_a_list_of_them_and_is_remembered(tmp_path: Path) -> None:
    body = """
hydra:
  sweeper:
    params: {dtype: "float32,float16", attention: "eager,sdpa,sdpa_math", use_cache: "true,false"}
    exclude:
      - {dtype: float32, attention: [sdpa, sdpa_math]}
      - {use_cache: true, numerics: default}
"""
    request = request_of(TINY, "+grid=mine", user_conf=write_grid(tmp_path, "mine", body))
    pairs = list(zip(labels(request, "dtype"), labels(request, "attention"), strict=True))
    assert pairs == [("float32", "eager"), ("float16", "eager"), ("float16", "sdpa"), ("float16", "sdpa_math")]
    assert labels(request, "use_cache") == [False] * 4
    assert len(request.excluded) == 12 - 4
    axes, rule = request.excluded[0]
    assert all(axes[axis] in (label if isinstance(label, list) else [label]) for axis, label in rule.items())


def test_a_dotted_override_shows_in_the_name_only_if_it_changes_something() -> None:
    request = request_of(TINY, "numerics.bf16_reduction=default,off", "inputs.batch_size=2")
    assert labels(request, "numerics") == ["default", "default+bf16_reduction=off"]
    assert labels(request, "inputs") == ["sentences+batch_size=2"] * 2
    assert [cell.numerics.bf16_reduction for cell in request.cells] == ["default", "off"]


def test_names_that_long_values_make_stay_short_and_different(tmp_path: Path) -> None:
    long = [tmp_path / f"{'a' * 100}{tail}.txt" for tail in "xy"]
    for path in long:
        path.write_text("a text")
    names = labels(request_of(TINY, "inputs=file", f"inputs.file={long[0]},{long[1]}"), "inputs")
    assert len(set(names)) == 2
    assert all(len(str(name)) < 60 for name in names)


def test_a_dotted_override_goes_to_every_option_of_its_group() -> None:
    request = request_of("checkpoint=tiny_llama,tiny_qwen3", "checkpoint.seed=3")
    assert labels(request, "checkpoint") == ["tiny_llama+seed=3", "tiny_qwen3+seed=3"]


def test_null_reference_is_the_default_one() -> None:
    assert request_of(TINY).reference == DEFAULT_REFERENCE


def test_the_reference_of_a_grid_replaces_the_default_and_the_command_line_replaces_both(tmp_path: Path) -> None:
    conf = write_grid(tmp_path, "mine", "reference: {layout: padded_left}\n")
    assert request_of(TINY, "+grid=mine", user_conf=conf).reference == {"layout": Layout.PADDED_LEFT}
    typed = request_of(TINY, "+grid=mine", "reference={dtype:float64}", user_conf=conf)
    assert typed.reference == {"dtype": Dtype.FLOAT64}


def test_a_group_in_the_reference_is_the_option_as_its_file_states_it() -> None:
    request = request_of(TINY, "reference={numerics:default}", "numerics.deterministic=true")
    assert isinstance(request.reference["numerics"], Numerics)
    assert request.reference["numerics"].name == "default"
    assert request.reference["numerics"].deterministic is None


def test_the_config_is_plain_data_and_says_what_was_typed() -> None:
    config = request_of(TINY, "dtype=float32,float16", "wandb.project=mine").config
    assert json.loads(json.dumps(config)) == config
    assert config["wandb"]["project"] == "mine"
    assert "dtype=float32,float16" in config["overrides"]


def test_ten_thousand_cells() -> None:
    seeds = "checkpoint.seed=range(0,40)"
    product = [
        "layout=packed,padded_left",
        "positions=explicit,implicit",
        "use_cache=true,false",
        "dtype=float32,bfloat16",
    ]
    loads = "load_strategy=" + ",".join(LoadStrategy)
    attention = "attention=eager,sdpa,sdpa_math"
    assert len(request_of(TINY, seeds, loads, attention, *product).cells) == 40 * 16 * 6 * 3


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("dtype=fp32", "dtype: Input should be .*given: 'fp32'.*type dtype=float32"),
        ("dtype=float32,bf16", "given: 'bf16'.*type dtype=bfloat16"),
        ("attention=flash_atention_2", "type attention=flash_attention_2"),
        ("dtype=[]", "dtype: the list is empty"),
        ("checkpoint.seed=range(0,10000000000)", "more than 200,000 combinations"),
        ("dtype=interval(0,1)", "interval"),
        ("dtyp=float32,float16", "dtyp: no such key; did you mean dtype"),
        ("+dtyp=float32", "dtyp: no such key; did you mean dtype"),
        ("numerics.bf16_reducton=off", "did you mean bf16_reduction"),
        ("~numerics", "nothing can be deleted"),
        ("wandb.mode=offline,online", "wandb.mode: .*only axes can be swept"),
        ("output_dir=a,b", "output_dir: .*only axes can be swept"),
        ("dry_run=true,false", "dry_run: .*only axes can be swept"),
        ("+grid=bf16_vs_fp32,load_strategy", "one grid at a time: type \\+grid=bf16_vs_fp32"),
        ("reference={dtyp:float32}", "reference.dtyp: no such axis"),
        ("reference={dtype:fp32}", "reference.dtype: .*did you mean float32"),
        ("reference=float32", "reference: maps axes to values"),
        ("reference={numerics:{name:x}}", "reference.numerics: write the name"),
        ("hydra.sweeper.exclude=[{dtyp:float32}]", "exclude.dtyp: no such axis"),
        ("hydra.sweeper.exclude=[{dtype:fp32}]", "exclude.dtype: .*did you mean float32"),
        ("hydra.sweeper.exclude=[{attention:sdpa}]", "no cell is left"),
    ],
)
def test_bad_input_is_one_line(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        request_of(TINY, argument)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ("{dtype: [float32, bf16]}", "dtype: .*type dtype=bfloat16"),
        ("{dtype: []}", "dtype: the list is empty"),
        ("{dtyp: float32}", "dtyp: no such key; did you mean dtype"),
        ("{latency_repeats: '1,2'}", "latency_repeats: .*only axes can be swept"),
    ],
)
def test_bad_params_are_one_line(tmp_path: Path, params: str, message: str) -> None:
    conf = write_grid(tmp_path, "mine", f"hydra: {{sweeper: {{params: {params}}}}}\n")
    with pytest.raises(ConfigError, match=message):
        request_of(TINY, "+grid=mine", user_conf=conf)


def test_an_unknown_key_in_a_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="refrence: no such key; did you mean reference"):
        request_of(TINY, "+grid=mine", user_conf=write_grid(tmp_path, "mine", "refrence: {dtype: float32}\n"))


def test_every_axis_can_be_in_the_reference() -> None:
    request = request_of(TINY)
    chosen = request.cells[0].axes()
    reference = ",".join(f"{axis}:{str(label).lower()}" for axis, label in chosen.items())
    assert request_of(TINY, f"reference={{{reference}}}").reference == {
        axis: getattr(request.cells[0], axis) for axis in axes.names()
    }
