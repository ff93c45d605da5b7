"""Every file in conf/ is composed; every grid is planned."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sweeper.cli.run import config_folder
from sweeper.config import Cell, Settings
from sweeper.environment import environment
from sweeper.models import axes
from sweeper.models.axis import typed
from sweeper.planning.grid import DEFAULT_REFERENCE
from sweeper.planning.plan import make_plan
from tests.composing import request_of

CONF = config_folder()
GRIDS = sorted(path.stem for path in (CONF / "grid").glob("*.yaml"))
NEEDS_A_VALUE = {
    "folder": "checkpoint.path=model",
    "hub": "checkpoint.repo_id=me/model",
    "file": f"inputs.file={Path(__file__).parent / 'data' / 'texts.txt'}",
    "token_ids": "inputs.token_ids=[[5,6]]",
    "media": f"inputs.media={Path(__file__).parent / 'data' / 'images'}",
    "arrays": f"inputs.arrays={Path(__file__).parent / 'data' / 'arrays.npy'}",
}


@pytest.mark.parametrize("name", GRIDS)
def test_every_grid_is_planned_with_the_cells_that_its_comment_promises(name: str) -> None:
    request = request_of(f"+grid={name}", "checkpoint=tiny_llama")
    plan = make_plan(request, environment("cpu"))
    comment = (CONF / "grid" / f"{name}.yaml").read_text().split("reference:")[0]
    promised = [int(count) for count in re.findall(r"(\d+) cells", comment)]
    assert promised == [len(request.cells)]
    assert len({planned.cell_id for planned in plan.cells}) == len(plan.cells)
    assert any(planned.unsupported is None for planned in plan.cells)
    assert f"+grid={name}" in comment


@pytest.mark.parametrize("group", axes.groups())
def test_every_option_of_every_group_is_valid_and_named_after_its_file(group: str) -> None:
    names = sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    free = [name for name in names if name not in NEEDS_A_VALUE]
    request = request_of(f"{group}={','.join(free)}")
    assert [getattr(cell, group).name for cell in request.cells] == free
    for name in set(names) - set(free):
        assert len(request_of(f"{group}={name}", NEEDS_A_VALUE[name]).cells) == 1


def test_the_base_config_has_all_axes_and_settings_each_with_a_comment() -> None:
    text = (CONF / "config.yaml").read_text()
    keys = {line.split(":")[0] for line in text.splitlines() if re.match(r"[a-z_]+:", line)}
    assert keys == {*axes.names(), *Settings.model_fields, "reference", "defaults", "hydra"} - {
        *axes.groups(),
        "launcher",
    }
    bare = [line for line in text.splitlines() if ": " in line and "#" not in line]
    assert bare == ["reference: null"]  # its comment is the paragraph above it


def test_the_base_config_says_of_each_axis_what_the_table_says() -> None:
    text = (CONF / "config.yaml").read_text()
    for axis in axes.table():
        if axis.group:
            assert f"  - {axis.name}: {axis.default} # {axis.help}: conf/{axis.name}\n" in text
        else:
            assert f"\n{axis.name}: {typed(axis.default)} # {axis.help}\n" in text


def test_the_table_has_the_fields_of_a_cell() -> None:
    assert axes.names() == tuple(Cell.model_fields)
    kinds = {axis.name: axis.kind for axis in axes.table() if axis.name != "checkpoint"}  # a union with a tag
    assert kinds == {name: field.annotation for name, field in Cell.model_fields.items() if name != "checkpoint"}


def test_the_comment_on_the_reference_states_the_default() -> None:
    stated = ", ".join(f"{axis}: {value}" for axis, value in DEFAULT_REFERENCE.items())
    assert f"{{{stated}}}" in (CONF / "config.yaml").read_text()


def test_the_settings_of_the_base_config_are_the_defaults_of_the_code() -> None:
    assert request_of("checkpoint=tiny_llama").settings == Settings()
