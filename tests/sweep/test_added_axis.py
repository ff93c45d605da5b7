"""An axis that is registered here, without a change to the package, is planned, shown, keyed, put back and named."""

from __future__ import annotations

import contextlib
import functools
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from sweeper.cli.compose import arrange
from sweeper.cli.explain import explain_cell
from sweeper.cli.help import help_text
from sweeper.cli.run import carry_out, config_folder
from sweeper.config import Cell, parse
from sweeper.environment import environment
from sweeper.errors import ConfigError
from sweeper.models import axes
from sweeper.models.axis import Axis, nothing
from sweeper.models.conditions import same_conditions, switches
from sweeper.models.weights import WeightsKey
from sweeper.planning import plan as planning
from sweeper.planning.plan import Plan, make_plan
from sweeper.records.cell import Status
from sweeper.records.store import Store
from sweeper.sweep.code_paths import CodePaths
from sweeper.sweep.runner import Runner
from tests.composing import request_of, write_grid

TINY = ("checkpoint=tiny_llama", "inputs=report_2", "wandb.mode=disabled", "dtype=float32", "attention=eager")
FACTORS = {"full": 1.0, "half": 0.5}


@contextlib.contextmanager
def scaled(cell: Cell) -> Iterator[None]:
    """SiLU times a factor: what every MLP of a Llama computes, so that another factor is another function."""
    own = nn.functional.silu
    factor = FACTORS[cell.silu_scale]  # type: ignore[attr-defined]

    @functools.wraps(own)
    def silu(*arguments: Any, **named: Any) -> Tensor:
        return own(*arguments, **named) * factor

    nn.functional.silu = silu
    try:
        yield
    finally:
        nn.functional.silu = own


SILU_SCALE = Axis(
    name="silu_scale",
    help="what SiLU is multiplied by",
    kind=Literal["full", "half"],
    default="full",
    around=scaled,
)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def axis() -> Iterator[Axis]:
    with axes.registered(SILU_SCALE):
        yield SILU_SCALE


@contextlib.contextmanager
def with_axis(**entry: Any) -> Iterator[None]:
    """`SILU_SCALE` registered with other things in its entry."""
    with axes.registered(Axis(**{**vars(SILU_SCALE), **entry})):
        yield


def plan_of(tmp_path: Path, *arguments: str) -> Plan:
    return make_plan(request_of(*TINY, f"output_dir={tmp_path}", *arguments), environment("cpu"))


def two_cells(tmp_path: Path) -> tuple[Cell, Cell]:
    full, half = (planned.cell for planned in plan_of(tmp_path, "silu_scale=full,half").cells)
    return full, half


# ---- planned -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("axis")
def test_a_grid_over_it_is_planned(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "silu_scale=half,full", "reference={silu_scale:full}")
    assert [planned.cell.axes()["silu_scale"] for planned in plan.cells] == ["half", "full"]
    assert [planned.reference.axes()["silu_scale"] for planned in plan.cells] == ["full", "full"]
    assert len({planned.cell_id for planned in plan.cells}) == 2
    assert plan.cells[1].cell_id == plan.cells[1].reference_id == plan.cells[0].reference_id


@pytest.mark.usefixtures("axis")
def test_a_grid_file_can_vary_exclude_and_state_it(tmp_path: Path) -> None:
    rules = "exclude: [{silu_scale: half, dtype: float32}]"
    sweeper = f"hydra: {{sweeper: {{params: {{silu_scale: 'full,half', dtype: 'float32,float16'}}, {rules}}}}}\n"
    conf = write_grid(tmp_path, "mine", sweeper)
    request = request_of("checkpoint=tiny_llama", "+grid=mine", user_conf=conf)
    assert [(cell.axes()["silu_scale"], cell.dtype.value) for cell in request.cells] == [
        ("full", "float32"),
        ("full", "float16"),
        ("half", "float16"),
    ]
    conf = write_grid(tmp_path, "stated", "silu_scale: half\n")
    (cell,) = request_of("checkpoint=tiny_llama", "+grid=stated", user_conf=conf).cells
    assert cell.axes()["silu_scale"] == "half"


@pytest.mark.usefixtures("axis")
def test_its_default_is_the_value_where_nobody_gives_one(tmp_path: Path) -> None:
    (planned,) = plan_of(tmp_path).cells
    assert planned.cell == two_cells(tmp_path)[0]
    older = {key: value for key, value in planned.cell.model_dump(mode="json").items() if key != "silu_scale"}
    assert parse(Cell, older) == planned.cell  # a record from before there was such an axis


@pytest.mark.usefixtures("axis")
def test_a_cell_with_it_is_a_cell_like_any_other(tmp_path: Path) -> None:
    full, half = two_cells(tmp_path)
    assert full != half
    assert len({full, half, half.model_copy(update={"silu_scale": "full"})}) == 2
    assert parse(Cell, half.model_dump(mode="json")) == half == pickle.loads(pickle.dumps(half))
    assert list(half.axes()) == [*Cell.model_fields, "silu_scale"]


# ---- validated ---------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("axis")
@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("silu_scale=hlf", r"silu_scale: Input should be 'full' or 'half' \(given: 'hlf'\); type silu_scale=half"),
        ("reference={silu_scale:hlf}", "reference.silu_scale: .*; did you mean half"),
        ("hydra.sweeper.exclude=[{silu_scale:hlf}]", "hydra.sweeper.exclude.silu_scale: .*; did you mean half"),
        ("silu_scale=null", "silu_scale: a value is missing; type silu_scale=..."),
        ("+silu_scal=half", "silu_scal: no such key; did you mean silu_scale"),
    ],
)
def test_a_bad_value_is_one_line(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        request_of(*TINY, argument)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("entry", [{"name": "dtype"}, {"name": "verdict"}, {"name": "a-b"}, {"default": "third"}])
def test_an_entry_that_cannot_be_is_refused(entry: dict[str, Any]) -> None:
    before = axes.names()
    with pytest.raises(ConfigError), with_axis(**entry):
        pass
    assert axes.names() == before


def test_a_cell_has_it_only_while_it_is_registered(tmp_path: Path) -> None:
    with axes.registered(SILU_SCALE):
        choices = two_cells(tmp_path)[1].model_dump(mode="json")
    with pytest.raises(ConfigError, match="silu_scale: no such axis"):
        parse(Cell, choices)
    assert arrange(["silu_scale=half"]) == ["--multirun", "silu_scale=half"]  # which Hydra refuses


# ---- shown -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("axis")
def test_the_help_and_the_table_of_a_sweep_show_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_text([config_folder()], {})
    assert re.search(r"silu_scale +what SiLU is multiplied by \(default: full\)\n +full, half\n", shown)
    request = request_of(*TINY, "silu_scale=full,half", f"output_dir={tmp_path}", "verdict=false", "sweep=s")
    assert carry_out(request) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(re.match(r"cell +silu_scale ", line) for line in lines)
    assert any(re.match(r"\w+ +half ", line) for line in lines)
    record = next(
        record for record in Store(tmp_path / "single" / "s").records() if record.axes["silu_scale"] == "half"
    )
    assert record.choices["silu_scale"] == "half"
    assert carry_out(request) == 0
    assert capsys.readouterr().err.count("finished before, skipped") == 2  # the same command finds its cells again


# ---- keyed -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("axis")
def test_an_entry_that_says_nothing_shares_nothing(tmp_path: Path) -> None:
    full, half = two_cells(tmp_path)
    assert WeightsKey.of(full).read != WeightsKey.of(half).read
    assert axes.parts("code", full) != axes.parts("code", half)
    assert axes.parts("function", full) != axes.parts("function", half)
    assert not same_conditions(full, half)
    assert CodePaths()._key(full, loaded(full)) != CodePaths()._key(half, loaded(full))


def loaded(cell: Cell) -> Any:
    from sweeper.models.loading import LoadedModel

    return LoadedModel(nn.Linear(1, 1), WeightsKey.of(cell), 0.0)


@pytest.mark.parametrize("key", ["weights", "code", "conditions", "function"])
def test_an_entry_says_what_is_shared_all_the_same(tmp_path: Path, key: Any) -> None:
    with with_axis(**{key: nothing}):
        full, half = two_cells(tmp_path)
        differs = {
            other: axes.parts(other, full) != axes.parts(other, half) for other in ("weights", "code", "function")
        }
        differs["conditions"] = not same_conditions(full, half)
    assert differs == {other: other != key for other in ("weights", "code", "conditions", "function")}


def test_an_entry_of_the_table_left_blank_takes_part_with_its_value() -> None:
    blank = Axis(name="dtype", help="", kind=str, default="")
    (cell,) = request_of("checkpoint=tiny_llama").cells
    assert [blank.part(key, cell) for key in ("weights", "code", "conditions", "function")] == [cell.dtype] * 4


@pytest.mark.parametrize("kept_bytes", [2**30, 1])
@pytest.mark.parametrize("weights", [None, nothing])
def test_a_reference_of_another_value_runs_under_its_own(tmp_path: Path, kept_bytes: int, weights: Any) -> None:
    """A recorded reference and one in step, with a model of its own and with a shared one."""
    with with_axis(weights=weights):
        plan = plan_of(tmp_path, "silu_scale=full,half", "reference={silu_scale:full}")
        running = Runner(plan.environment, latency_repeats=1, verdict=False, kept_bytes=kept_bytes, say=print)
        (same, other) = (running.run(planned)[0] for planned in plan.cells)
    assert (same.first_divergence, other.first_divergence) == (None, "model.layers.0.mlp.act_fn")
    assert same.output is not None
    assert other.output is not None
    assert other.reference_sample == same.reference_sample == same.sample
    assert other.sample != other.reference_sample
    assert other.output.equal_fraction < 0.1
    assert nn.functional.silu.__module__ != __name__


def test_packages_of_a_value_are_part_of_the_id_of_cells_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: dict[str, str | None] = {"scaler": "1.0", "unrelated": "1.0"}

    def ids() -> list[str]:
        monkeypatch.setattr(planning, "versions", lambda names: {name: installed.get(name) for name in names})
        plan = plan_of(tmp_path, "silu_scale=full,half", "reference={silu_scale:full}")
        assert plan.environment["scaler"] == installed["scaler"]
        return [planned.cell_id for planned in plan.cells]

    with with_axis(packages=lambda cell: ("scaler",) if cell.silu_scale == "half" else ()):
        before = ids()
        assert ids() == before
        installed["unrelated"] = "2.0"
        assert ids() == before
        installed["scaler"] = "2.0"
        full, half = ids()
    assert full == before[0]
    assert half != before[1]


def test_what_was_unsupported_runs_once_it_is_not(tmp_path: Path) -> None:
    ready: list[bool] = []

    def unsupported(cell: Cell) -> str | None:
        wants = cell.silu_scale == "half"  # type: ignore[attr-defined]
        return "half is not there; use silu_scale=full" if wants and not ready else None

    request = functools.partial(
        request_of, *TINY, "silu_scale=full,half", f"output_dir={tmp_path}", "verdict=false", "sweep=s"
    )
    with with_axis(unsupported=unsupported):
        assert carry_out(request()) == 0
        assert statuses(tmp_path) == [("full", Status.OK), ("half", Status.UNSUPPORTED)]
        ready.append(True)
        assert carry_out(request()) == 0
    assert statuses(tmp_path)[:2] == [("full", Status.OK), ("half", Status.OK)]


def statuses(tmp_path: Path) -> list[tuple[Any, Status]]:
    records = Store(tmp_path / "single" / "s").records()
    return sorted((str(record.axes["silu_scale"]), record.status) for record in records)


def test_a_value_that_needs_a_package_that_is_missing_is_unsupported(tmp_path: Path) -> None:
    with with_axis(needs=lambda cell: ("no-such-distribution",) if cell.silu_scale == "half" else ()):
        full, half = plan_of(tmp_path, "silu_scale=full,half").cells
    missing = "half needs the package no-such-distribution, which is not installed"
    assert (full.unsupported, half.unsupported) == (None, f"{missing}; install it or use another silu_scale")


# ---- put back ----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("axis")
def test_explain_puts_it_back_alone_and_names_it(tmp_path: Path) -> None:
    arguments = ("silu_scale=half", "numerics.deterministic=true", "reference={silu_scale:full,numerics:default}")
    assert carry_out(request_of(*TINY, *arguments, f"output_dir={tmp_path}", "sweep=s")) == 0
    folder = tmp_path / "single" / "s"
    (record,) = Store(folder).records()
    assert record.verdict is not None
    assert record.verdict.kind == "semantic"
    explained = explain_cell(folder, record.cell_id)
    assert explained.cause.startswith("silu_scale: full -> half; introduced at model.layers.0.mlp")
    assert explained.put_back == "silu_scale=full"
    assert explained.closed_bitwise


@pytest.mark.usefixtures("axis")
def test_what_is_typed_to_put_it_back_puts_it_back(tmp_path: Path) -> None:
    full, half = two_cells(tmp_path)
    (put_back,) = plan_of(tmp_path, "silu_scale=half", switches(full)["silu_scale"].fix).cells
    assert put_back.cell == full != half


# ---- a check that it acted ---------------------------------------------------------------------------------------


def test_a_value_that_did_nothing_is_told(tmp_path: Path) -> None:
    calls: list[float] = []

    @contextlib.contextmanager
    def unused(cell: Cell) -> Iterator[None]:
        """Puts a factor on a function that a Llama does not call."""
        yield

    def without_effect(cell: Cell) -> dict[str, str]:
        return {} if calls else {"silu_scale": "nothing called it"}

    with with_axis(around=unused, without_effect=without_effect):
        plan = plan_of(tmp_path, "silu_scale=half")
        running = Runner(plan.environment, verdict=False, say=print)
        (idle,) = (running.run(planned)[0] for planned in plan.cells)
        calls.append(1.0)
        (acted,) = (running.run(planned)[0] for planned in plan.cells)
    assert idle.without_effect == {"silu_scale": "nothing called it"}
    assert acted.without_effect == {}


# ---- an axis whose values are config files -----------------------------------------------------------------------


class Scale(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    factor: float = 1.0


def test_an_axis_of_config_files(tmp_path: Path) -> None:
    (tmp_path / "scale").mkdir()
    for name, factor in (("one", 1.0), ("half", 0.5)):
        (tmp_path / "scale" / f"{name}.yaml").write_text(f"{{name: {name}, factor: {factor}}}\n")
    entry = Axis(name="scale", help="a factor", kind=Scale, default={"name": "none"}, group=True)
    with axes.registered(entry):
        assert re.search(r"scale +a factor .*\n +half, one\n", help_text([config_folder(), tmp_path], {}))
        assert [scale_of(cell) for cell in request_of(*TINY).cells] == [Scale(name="none")]
        arguments = ("scale=one,half", "scale.factor=1.0,2.0", "reference={scale:half}")
        request = request_of(*TINY, *arguments, user_conf=tmp_path)
        assert [scale_of(cell).name for cell in request.cells] == [
            "one",
            "one+factor=2.0",
            "half+factor=1.0",
            "half+factor=2.0",
        ]
        assert request.reference == {"scale": Scale(name="half", factor=0.5)}
        assert len({planned.cell_id for planned in make_plan(request, environment("cpu")).cells}) == 4
        with pytest.raises(ConfigError, match=r"scale\.factr: no such setting; did you mean factor"):
            request_of(*TINY, "scale=one", "scale.factr=2", user_conf=tmp_path)


def scale_of(cell: Cell) -> Scale:
    found = cell.scale  # type: ignore[attr-defined]
    assert isinstance(found, Scale)
    return found
