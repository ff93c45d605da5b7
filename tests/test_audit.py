"""Known vulnerabilities of the pinned versions: asked for where the database can be reached, else skipped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.audit import ROOT, NotAsked, found_in, vulnerable

FOUND = {
    "dependencies": [
        {"name": "jinja2", "version": "3.1.0", "vulns": [{"id": "CVE-1", "fix_versions": ["3.1.6"], "aliases": []}]},
        {"name": "rich", "version": "14.0", "vulns": []},
        {"name": "mine", "skip_reason": "not in the index"},
    ],
    "fixes": [],
}


@pytest.mark.slow
def test_no_pinned_version_is_known_to_be_vulnerable() -> None:
    try:
        assert vulnerable(ROOT / "constraints.txt") == []
    except NotAsked as reason:
        pytest.skip(f"the database of vulnerabilities was not asked: {reason}")


def test_what_is_vulnerable_is_named_with_the_version_that_is_not() -> None:
    assert found_in(json.dumps(FOUND), "") == ["jinja2 3.1.0: CVE-1, fixed in 3.1.6"]


def test_a_database_that_cannot_be_reached_is_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pins.txt").write_text("rich==14.0.0\n")
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "https_proxy", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(NotAsked, match=r"refused|No module"):
        vulnerable(tmp_path / "pins.txt")


def test_any_other_failure_is_one() -> None:
    with pytest.raises(RuntimeError, match="failed: requirement"):
        found_in("", "Traceback\nrequirement file is malformed")
