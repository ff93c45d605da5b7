"""Asks a database of known vulnerabilities about every version in constraints.txt, through pip-audit.

    python scripts/audit.py

Exit code 1 where a version is known to be vulnerable, with what to type; 0 where none is, and where the database cannot
be reached, which is said. The tests ask too, and are skipped where it cannot be reached.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ACCEPTED = {
    "CVE-2026-68508": "hydra's _target_ in a config that somebody else wrote: no config is instantiated here",
}
"""What does not concern this project -> why."""
UNREACHABLE = ("requests.exceptions.", "ConnectionError", "ServiceError", "Could not connect", "timed out")
ANSWER_S = 300


class NotAsked(Exception):
    """The database was not asked; the message says why."""


def vulnerable(pins: Path) -> list[str]:
    """A line a pinned version that is known to be vulnerable.

    Raises:
        NotAsked: pip-audit is not installed, or its database cannot be reached.
        RuntimeError: pip-audit failed in another way.
    """
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(pins), "--no-deps", "--disable-pip"]
    command += ["--progress-spinner", "off", "--timeout", "10", "--format", "json"]
    command += [word for name in ACCEPTED for word in ("--ignore-vuln", name)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ANSWER_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotAsked(f"no answer within {ANSWER_S} s") from None
    return found_in(done.stdout, done.stderr)


def found_in(answer: str, said: str) -> list[str]:
    """What pip-audit found, by what it printed on standard output and on standard error."""
    try:
        dependencies = json.loads(answer)["dependencies"]
    except (ValueError, KeyError):
        last = next((line for line in reversed(said.splitlines()) if line.strip()), "it said nothing")
        if "No module named pip_audit" in said or any(word in said for word in UNREACHABLE):
            raise NotAsked(last) from None
        raise RuntimeError(f"pip-audit failed: {last}") from None
    return [_line(one, known) for one in dependencies for known in one.get("vulns", ())]


def _line(dependency: dict[str, Any], known: dict[str, Any]) -> str:
    fixed = ", ".join(known.get("fix_versions", ())) or "no version yet"
    return f"{dependency['name']} {dependency['version']}: {known['id']}, fixed in {fixed}"


def main() -> int:
    try:
        lines = vulnerable(ROOT / "constraints.txt")
    except NotAsked as reason:
        print(f"not asked: {reason}")
        return 0
    print(*lines or ["no pinned version is known to be vulnerable"], sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
