"""JUnit, JSON and CSV of a sweep."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sweeper.cli import report
from sweeper.records.cell import Status
from sweeper.records.sweep import Sweep
from sweeper.records.verdict import VerdictRecord
from sweeper.reports.files import as_csv, as_json, junit
from tests.sinks.records import cell, measures
from tests.sinks.sweeps import Cells, layered, measured, stored

HOSTILE = 'a "quoted" <b>, one, & \x00\x1b[31m \n=cmd()'


def sweep(folder: Path, fail_on: object = ("failed",)) -> Sweep:
    """A failed cell and one of every verdict, with names that want to be more than text."""
    semantic = VerdictRecord(kind="semantic", reason=HOSTILE, texts=(0,))
    cells: Cells = [
        (measured("f1", status=Status.FAILED, reason=HOSTILE, traceback=HOSTILE, output=None), []),
        (measured("u1", status=Status.UNSUPPORTED, reason="needs a GPU", output=None), []),
        (measured("s1", verdict=semantic, output=measures(0.5), axes=cell(dtype="float16").axes()), layered(0.5)),
        (measured("i1", verdict=semantic.model_copy(update={"kind": "identical"}), output=measures(0)), layered(0)),
    ]
    return stored(folder, cells, grid="<grid>", config={"overrides": [], "fail_on": fail_on})


@pytest.mark.parametrize(
    ("fail_on", "tags"),
    [
        (["failed"], {"f1": "error", "u1": "skipped", "s1": "system-out", "i1": "system-out"}),
        (["semantic", "unsupported"], {"f1": "skipped", "u1": "failure", "s1": "failure", "i1": "system-out"}),
        ([], {"f1": "skipped", "u1": "skipped", "s1": "system-out", "i1": "system-out"}),
    ],
)
def test_junit_fails_what_the_exit_code_fails(tmp_path: Path, fail_on: list[str], tags: dict[str, str]) -> None:
    suite = ElementTree.fromstring(junit(sweep(tmp_path, fail_on))).find("testsuite")
    assert suite is not None
    assert {case.attrib["name"].split()[0]: case[0].tag for case in suite} == tags
    counted = {"failure": "failures", "error": "errors", "skipped": "skipped"}
    for tag, attribute in counted.items():
        assert int(suite.attrib[attribute]) == list(tags.values()).count(tag)
    assert suite.attrib["tests"] == "4"


def test_junit_holds_the_sentence_and_nothing_in_it_is_markup(tmp_path: Path) -> None:
    root = ElementTree.fromstring(junit(sweep(tmp_path, ["failed", "semantic"])))
    error, failure = root.find(".//error"), root.find(".//failure")
    assert error is not None
    assert failure is not None
    assert '"quoted" <b>' in (error.text or "")
    assert failure.attrib["message"].startswith('semantic, 1 cell: another function is computed; a "quoted" <b>')
    assert "python -m sweeper explain" in failure.attrib["message"]


def test_json_and_csv_have_a_row_a_cell_and_read_back(tmp_path: Path) -> None:
    made = sweep(tmp_path)
    found = json.loads(as_json(made), parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert [row["cell_id"] for row in found["cells"]] == ["f1", "u1", "s1", "i1"]
    assert found["cells"][3]["output_sqnr_db"] == "Infinity"
    assert found["answer"][0]["end"] == "failed"
    rows = list(csv.DictReader(io.StringIO(as_csv(made), newline="")))
    assert [row["cell_id"] for row in rows] == ["f1", "u1", "s1", "i1"]
    assert rows[0]["reason"] == HOSTILE
    assert float(rows[3]["output_sqnr_db"]) == math.inf
    assert float(rows[2]["output_rel_l2"]) == measures(0.5).rel_l2
    assert rows[0]["output_rel_l2"] == ""


def test_the_report_writes_them_where_it_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path / "sweep").folder
    files = {kind: tmp_path / f"out.{kind}" for kind in ("junit", "json", "csv")}
    options = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    assert report.main([str(folder), *options]) == 0
    assert all(file.stat().st_size for file in files.values())
    assert capsys.readouterr().out.split() == [str(file) for file in files.values()]
