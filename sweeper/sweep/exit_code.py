"""The exit code of a sweep that came to its end, and what to say with it."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from sweeper.config import FAIL_ON
from sweeper.records.cell import RECORDED, CellRecord, Status
from sweeper.reports.answer import end_of


def exit_code(records: Sequence[CellRecord], fail_on: Collection[str], folder: Path) -> tuple[int, list[str]]:
    """0 or 1, and for a 1 what made it and what to type.

    Args:
        records: all cells of the plan.
        fail_on: words of `FAIL_ON`.
        folder: the sweep's, for the commands.
    """
    lines = []
    for word in (word for word in FAIL_ON if word in fail_on):
        found = [record for record in records if end_of(record) == word or (word == "inconclusive" and record.unjudged)]
        if found:
            lines.append(_line(word, found, folder))
    if not _anything_compared(records):
        lines.append("exit code 1: no cell could be compared with its reference, so that nothing is known")
    return int(bool(lines)), lines


def _line(word: str, found: Sequence[CellRecord], folder: Path) -> str:
    cells = f"{len(found)} cell{'s' * (len(found) > 1)} {end_of(found[0])} (fail_on names {word})"
    words = ["explain", str(folder), found[0].cell_id]
    if word in ("failed", "unsupported") or RECORDED in found[0].reference_axes:
        words = ["report", str(folder), "--cell", found[0].cell_id]
    return f"exit code 1: {cells}; see why: {shlex.join(['python', '-m', 'sweeper', *words])}"


def _anything_compared(records: Sequence[CellRecord]) -> bool:
    """Whether a cell that is not its own reference ran; of references alone, one of them."""
    candidates = [record for record in records if record.cell_id != record.reference_id] or records
    return any(record.status is Status.OK for record in candidates)
