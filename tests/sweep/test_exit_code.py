"""The exit code: `fail_on` says which cells make it 1, and a sweep that knows nothing is never 0."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from sweeper.config import FAIL_ON, Settings, parse
from sweeper.errors import ConfigError
from sweeper.records.cell import CellRecord, Status
from sweeper.records.verdict import VerdictRecord
from sweeper.sweep.exit_code import exit_code
from tests.composing import request_of
from tests.sinks.records import record


def ended(end: str, cell_id: str = "c1") -> CellRecord:
    if end in (Status.FAILED, Status.UNSUPPORTED):
        return record(cell_id, status=Status(end), reason="because")
    return record(cell_id, verdict=VerdictRecord(kind=end, reason="because", texts=(0,)))


@pytest.mark.parametrize("fail_on", [set(words) for n in range(6) for words in itertools.combinations(FAIL_ON, n)])
@pytest.mark.parametrize("end", [*FAIL_ON, "rounding", "identical"])
def test_exactly_what_is_named_fails(end: str, fail_on: set[str]) -> None:
    code, lines = exit_code([ended("identical", "c0"), ended(end)], fail_on, Path("out"))
    assert code == (end in fail_on)
    assert len(lines) == code
    if code:
        assert f"1 cell {end}" in lines[0]
        assert "python -m sweeper" in lines[0]
        assert "out" in lines[0].split()
        assert "c1" in lines[0]


@pytest.mark.parametrize("end", [Status.FAILED, Status.UNSUPPORTED])
def test_a_sweep_in_which_nothing_could_be_compared_is_never_0(end: Status) -> None:
    reference = record("r1", verdict=VerdictRecord(kind="identical", reason="because", texts=(0,)))
    for records in ([], [ended(end)], [reference, ended(end)]):
        code, lines = exit_code(records, (), Path("out"))
        assert code == 1
        assert lines == ["exit code 1: no cell could be compared with its reference, so that nothing is known"]
    assert exit_code([reference], (), Path("out")) == (0, [])


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("fail_on=policy,semantic", ("semantic", "policy")),
        ("fail_on=semantic,policy,semantic", ("semantic", "policy")),
        ("fail_on=[unsupported]", ("unsupported",)),
        ("fail_on=none", ()),
        ("fail_on=[]", ()),
        ("dtype=bfloat16", ("failed",)),
    ],
)
def test_the_command_line_names_several_without_making_a_grid(given: str, meant: tuple[str, ...]) -> None:
    request = request_of("checkpoint=tiny_llama", given)
    assert len(request.cells) == 1
    assert request.settings.fail_on == meant


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fail_on": "semantics"}, r"semantics: no cell ends so; did you mean semantic\?"),
        ({"fail_on": "rounding"}, "Allowed: failed, semantic, policy, inconclusive, unsupported, none"),
        ({"fail_on": "none,failed"}, "none stands alone"),
        ({"fail_on": "policy", "verdict": False}, "fail_on=policy needs verdicts"),
    ],
)
def test_what_is_meant_otherwise_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(Settings, given)
