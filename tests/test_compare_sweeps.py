"""`scripts/compare_sweeps.py` on small sweeps: what it passes, and what it must not pass."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from scripts import compare_sweeps
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import Store
from sweeper.records.verdict import EvidenceRecord, ExplanationRecord, VerdictRecord
from tests.damage import ANY_FILE
from tests.sinks.records import cell, measures
from tests.sinks.sweeps import layered, measured, stored

Change = Callable[[dict[str, Any]], None]


def verdict(value: float = 0.25, name: str = "replay rel_l2", **fields: Any) -> VerdictRecord:
    evidence = (EvidenceRecord(name=name, value=value, meaning="both sides as loaded"),)
    return VerdictRecord(**{"kind": "policy", "reason": "rounded", "evidence": evidence, "texts": (0,)} | fields)


def record(cell_id: str, load_strategy: str, **fields: Any) -> CellRecord:
    axes = cell(load_strategy=load_strategy).axes()
    return measured(cell_id, axes=axes, reference_axes=cell().axes(), verdict=verdict(), **fields)


def write(folder: Path, *cells: tuple[CellRecord, list[ModuleRecord]]) -> Path:
    stored(folder / "load_strategy" / "tiny", cells)
    return folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return write(
        tmp_path / "old", (record("o1", "dtype_at_load"), layered(0.0)), (record("o2", "cast_after_load"), layered(0.5))
    )


@pytest.fixture
def new(tmp_path: Path) -> Path:
    """The same cells under other ids, as another version or environment gives them, and slower."""
    records = [record("n1", "dtype_at_load", attempt="later"), record("n2", "cast_after_load", attempt="later")]
    return write(tmp_path / "new", *zip(records, (layered(0.0), layered(0.5)), strict=True))


def edit(folder: Path, cell_id: str, change: Change) -> None:
    path = folder / "load_strategy" / "tiny" / "cells" / cell_id / "cell.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def compared(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["compare_sweeps", *map(str, arguments)])
    code = compare_sweeps.main()
    return code, capsys.readouterr().out


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    return lambda *arguments: compared(monkeypatch, capsys, *arguments)


Run = Callable[..., tuple[int, str]]


def test_other_ids_attempts_times_and_machines_are_the_same_sweep(old: Path, new: Path, run: Run) -> None:
    def slower(data: dict[str, Any]) -> None:
        data["cost"]["latency_ms"], data["environment"]["torch"], data["started_at"] = 99.0, "3.0", "2030"

    edit(new, "n2", slower)
    code, out = run(old, new)
    assert (code, out.splitlines()[-1]) == (0, "THE SAME")
    assert "cast_after_load\n" not in out


def next_number(value: float) -> float:
    return math.nextafter(value, math.inf)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: data["output"].update(rms=next_number(data["output"]["rms"])), "output.rms"),
        (lambda data: data["output"].update(max_abs="NaN"), "output.max_abs"),
        (lambda data: data["texts"][1].update(output_cosine=0.98), "texts[1].output_cosine"),
        (lambda data: data["texts"].pop(), "texts: 2 entries -> 1 entries"),
        (lambda data: data.update(state=None), "state"),
        (lambda data: data.update(first_divergence="lm_head"), "first_divergence: null"),
        (lambda data: data.update(unaligned={"lm_head": "no tokens"}), "unaligned.lm_head"),
        (lambda data: data["cost"].update(repeatable=False), "cost.repeatable"),
        (lambda data: data["verdict"].update(kind="rounding"), 'kind: "policy" -> "rounding"'),
        (lambda data: data.update(verdict=None), 'verdict: "policy" -> null'),
        (lambda data: data["verdict"].update(reason="other"), "reason: "),
        (lambda data: data["verdict"]["evidence"][0].update(name="x"), "only NEW has 'x'"),
    ],
)
def test_one_thing_that_is_not_the_same_fails_and_is_named(
    old: Path, new: Path, run: Run, change: Change, said: str
) -> None:
    edit(new, "n2", change)
    code, out = run(old, new)
    assert code == 1
    (line,) = (line for line in out.splitlines() if said in line)
    assert line.startswith("  DIFFERS")
    assert "load_strategy/tiny cast_after_load" in out
    assert out.splitlines()[-1] == "DIFFERENT"


def test_one_bit_of_one_module_is_found_and_so_is_a_module_of_one_side(old: Path, tmp_path: Path, run: Run) -> None:
    rows = layered(0.5)
    rms = next_number(rows[3].measures.rms)
    rows[3] = rows[3].model_copy(update={"measures": rows[3].measures.model_copy(update={"rms": rms})})
    new = write(
        tmp_path / "new", (record("n1", "dtype_at_load"), layered(0.0)), (record("n2", "cast_after_load"), rows[:-1])
    )
    code, out = run(old, new)
    assert code == 1
    assert f"{rows[3].name}.rms" in out
    assert "lm_head: only OLD has this module" in out


@pytest.mark.parametrize(("steps", "code"), [(1, 0), (4, 0), (5, 1)])
def test_evidence_may_be_a_few_ulp_apart_and_is_listed(old: Path, new: Path, run: Run, steps: int, code: int) -> None:
    value = 0.25
    for _ in range(steps):
        value = next_number(value)
    edit(new, "n2", lambda data: data["verdict"]["evidence"][0].update(value=value))
    found, out = run(old, new)
    assert found == code
    assert f"replay rel_l2: 0.25 -> {value!r}, {steps} ULP" in out


def test_evidence_of_one_side_passes_when_it_is_said_that_it_may(old: Path, new: Path, run: Run) -> None:
    edit(new, "n2", lambda data: data["verdict"]["evidence"].append({"name": "more", "value": 1.0, "meaning": ""}))
    assert run(old, new)[0] == 1
    code, out = run(old, new, "--other-evidence")
    assert code == 0
    assert "only NEW has 'more'" in out


def test_fields_and_axes_of_one_version_are_said_and_pass(old: Path, new: Path, run: Run) -> None:
    def newer(data: dict[str, Any]) -> None:
        data["axes"]["weather"] = data["reference_axes"]["weather"] = False
        data["output"]["spearman"] = 1.0

    for cell_id in ("n1", "n2"):
        edit(new, cell_id, newer)
    code, out = run(old, new)
    assert code == 0
    assert "only NEW has the axis weather" in out
    assert "only NEW writes output.spearman (×2)" in out


def test_commands_may_have_another_name(old: Path, new: Path, run: Run) -> None:
    edit(old, "o2", lambda data: data["verdict"].update(decides="python -m sweeper.explain with more memory"))
    edit(new, "n2", lambda data: data["verdict"].update(decides="python -m sweeper explain with more memory"))
    assert run(old, new)[0] == 0
    edit(new, "n2", lambda data: data["verdict"].update(decides="python -m sweeper explain with less memory"))
    assert run(old, new)[0] == 1


def test_cells_and_sweeps_that_are_missing_fail(old: Path, tmp_path: Path, run: Run) -> None:
    new = write(tmp_path / "new", (record("n1", "dtype_at_load"), layered(0.0)))
    code, out = run(old, new)
    assert code == 1
    assert "cast_after_load: 1 such cells in OLD, 0 in NEW" in out
    stored(old / "load_strategy" / "another", [(record("o1", "dtype_at_load"), layered(0.0))])
    assert "load_strategy/another: only OLD has this sweep" in run(old, new)[1]
    assert run(tmp_path / "nothing", tmp_path / "nothing")[0] == 1


def test_cells_whose_axes_are_equal_are_paired_in_the_order_of_the_plan(tmp_path: Path, run: Run) -> None:
    def two(folder: str, prefix: str) -> Path:
        cells = [record(f"{prefix}{i}", "dtype_at_load", output=measures(0.25 * i)) for i in (1, 2)]
        return write(tmp_path / folder, *((one, layered(0.0)) for one in cells))

    code, out = run(two("old", "z"), two("new", "a"))
    assert code == 0
    assert "paired in the order of the plan (×2)" in out


def test_explanations_are_compared(old: Path, new: Path, run: Run) -> None:
    def explain(folder: Path, cell_id: str, *, bitwise: bool) -> None:
        texts = dict.fromkeys(("kind", "reason", "cause", "put_back", "since"), "the table")
        found = ExplanationRecord(cell_id=cell_id, closed_bitwise=bitwise, tried=(), environment={}, **texts)
        Store(folder / "load_strategy" / "tiny").write_explanation(found)

    explain(old, "o2", bitwise=True)
    assert "only OLD has explain/" in run(old, new)[1]
    explain(new, "n2", bitwise=True)
    assert run(old, new)[0] == 0
    explain(new, "n2", bitwise=False)
    code, out = run(old, new)
    assert code == 1
    assert "closed_bitwise: true -> false" in out


ZOO = """torch 2.13.0

<details><summary>tuning: 2 pairs</summary>

| pair | answer | difference | in float64 | verdict | right | cause named | cause |
| --- | --- | --- | --- | --- | --- | --- | --- |
| `same/llama` | harmless | 0.0e+00 | 1.0e-15 | identical | yes |  |  |
| `cast/llama` | harmful | 1.0e-02 | 3.5e-04 | policy | yes | yes | buffer: rel_l2 0.01. To put back: eps 1e-05 |

</details>
"""


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("1.0e-15", "8.0e-15", 0),  # what float64 rounds
        ("1.0e-02", "1.1e-02", 0),
        ("1.0e-02", "2.0e-02", 1),
        ("rel_l2 0.01.", "rel_l2 0.011.", 0),
        ("rel_l2 0.01.", "rel_l2 0.1.", 1),
        ("eps 1e-05", "eps 1e-06", 1),
        ("| policy", "| rounding", 1),
        ("buffer", "parameter", 1),
        ("`cast/llama`", "`cast/bert`", 1),
        ("tuning", "held_out", 0),  # a pair goes by its name
        ("| `same", "| `another/llama` | harmless | 0 | 0 | identical | yes |  |  |\n| `same", 0),  # the zoo grew
        ("| `same/llama` | harmless | 0.0e+00 | 1.0e-15 | identical | yes |  |  |\n", "", 1),
    ],
)
def test_the_zoos_tables_may_differ_in_sizes_alone(
    tmp_path: Path, run: Run, before: str, after: str, code: int
) -> None:
    old, new = tmp_path / "old.md", tmp_path / "new.md"
    old.write_text(ZOO)
    new.write_text(ZOO)
    assert run("--zoo", old, new)[0] == 0
    new.write_text(ZOO.replace(before, after))
    assert run("--zoo", old, new)[0] == code


def test_the_zoos_table_may_lose_the_columns_of_sizes(tmp_path: Path, run: Run) -> None:
    old, new = tmp_path / "old.md", tmp_path / "new.md"
    old.write_text(ZOO)
    kept = [
        "".join(f"|{cell}" for i, cell in enumerate(line.split("|")[1:]) if i not in (2, 3))
        for line in ZOO.splitlines()
    ]
    new.write_text("\n".join(kept))
    code, out = run("--zoo", old, new)
    assert code == 0
    assert "only OLD has the column 'in float64' (×2)" in out
    assert "cause: 2 compared" in out


@pytest.mark.parametrize("file", ["cells/n2/cell.json", "cells/n2/modules.parquet", "sweep.json"])
@pytest.mark.parametrize("kind", ["empty", "cut in half", "binary", "a folder", "missing"])
def test_a_damaged_file_is_named_and_fails(old: Path, new: Path, run: Run, file: str, kind: str) -> None:
    path = new / "load_strategy" / "tiny" / file
    ANY_FILE[kind](path)
    code, shown = run(old, new)
    assert code == 1
    assert f"DIFFERS: {path}: cannot be read" in shown or (file == "sweep.json" and "only OLD has this sweep" in shown)
