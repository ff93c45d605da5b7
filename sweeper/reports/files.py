"""A sweep for other programs: JUnit XML, JSON and CSV, from its records alone."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Collection
from typing import Any
from xml.etree import ElementTree

from sweeper.config import Settings, parse
from sweeper.records.cell import CellRecord, Status
from sweeper.records.frames import cell_row
from sweeper.records.sweep import Sweep, short_label
from sweeper.reports.answer import answer, end_of

_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 cannot hold


def junit(sweep: Sweep) -> str:
    """JUnit XML: a test case a cell. What `fail_on` of the sweep names is a failure, so that it says what the exit code
    says; of the rest, what cannot run is skipped, and all else passes with its verdict as output."""
    fail_on = parse(Settings, {"fail_on": sweep.description.config.get("fail_on", "failed")}).fail_on
    suite = ElementTree.Element("testsuite", name=_text(f"{sweep.description.grid} {sweep.description.sweep}"))
    for record in sweep.records:
        _add_case(suite, sweep, record, fail_on)
    for tag, name in (("failure", "failures"), ("error", "errors"), ("skipped", "skipped")):
        suite.set(name, str(len(suite.findall(f"testcase/{tag}"))))
    suite.set("tests", str(len(sweep.records)))
    root = ElementTree.Element("testsuites")
    root.append(suite)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def _add_case(suite: ElementTree.Element, sweep: Sweep, record: CellRecord, fail_on: Collection[str]) -> None:
    label = short_label(record.axes, sweep.varying)
    case = ElementTree.SubElement(
        suite, "testcase", classname=_text(sweep.description.grid), name=_text(f"{record.cell_id} {label}")
    )
    end = end_of(record)
    message = "; ".join(line.text for line in answer([record], sweep.folder))  # its sentence, and what to type
    if end in fail_on:
        tag = "error" if end == Status.FAILED else "failure"
        found = ElementTree.SubElement(case, tag, type=end, message=_text(message))
        found.text = _text(record.traceback or message)
    elif record.status is not Status.OK:
        ElementTree.SubElement(case, "skipped", message=_text(message))
    else:
        ElementTree.SubElement(case, "system-out").text = _text(message)


def _text(text: str) -> str:
    return _NO_XML.sub("�", text)


def as_json(sweep: Sweep) -> str:
    """The answer, and a flat object a cell. Infinity and not-a-number are strings, as in `cell.json`."""
    cells = [{name: _json(value) for name, value in cell_row(sweep, record).items()} for record in sweep.records]
    description = sweep.description
    found = {
        "grid": description.grid,
        "sweep": description.sweep,
        "command": sweep.command,
        "answer": [{"end": line.end, "text": line.text} for line in answer(sweep.records, sweep.folder)],
        "planned": len(description.cells),
        "damaged": list(sweep.damaged),
        "cells": cells,
    }
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _json(value: Any) -> Any:
    if not isinstance(value, float) or math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def as_csv(sweep: Sweep) -> str:
    """A row a cell, with the columns of `cell_row`; empty where a cell has none. Numbers as Python writes them."""
    rows = [cell_row(sweep, record) for record in sweep.records]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()
