"""What comparing two environments found, as lines for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.records.cell import CellRecord
from sweeper.reports.answer import labels
from sweeper.upgrades.findings import REGRESSIONS, CellChange, Upgrade


def lines(upgrade: Upgrade) -> list[str]:
    """The environments, a sentence a finding, worst first, and what to type."""
    old, new = upgrade.old.folder, upgrade.new.folder
    found = [f"OLD {old}", f"NEW {new}", "", *_environment(upgrade), ""]
    found.append(f"{len(upgrade.cells)} cells in both, the worst first")
    found += [f"  {_sentence(group, upgrade)}" for group in _grouped(upgrade.cells)]
    for side, without in (("OLD", upgrade.joined.only_old), ("NEW", upgrade.joined.only_new)):
        found += [
            f"  only in {side}: {label} ({counts[0]} in OLD, {counts[1]} in NEW)" for label, counts in without.items()
        ]
    for side, axes in (("OLD", upgrade.joined.axes_of_old), ("NEW", upgrade.joined.axes_of_new)):
        if axes:
            found.append(f"  only {side} has the axis {', '.join(axes)}: cells were paired by the others")
    if upgrade.joined.in_order:
        found.append(f"  {upgrade.joined.in_order} cells have the axes of another: paired in the order of the sweep")
    return [*found, "", *_end(upgrade)]


def _environment(upgrade: Upgrade) -> list[str]:
    if not upgrade.environment:
        return ["the environments are the same"]
    return ["what differs between the environments", *(f"  {change}" for change in upgrade.environment)]


def _grouped(cells: Sequence[CellChange]) -> list[list[CellChange]]:
    """The changes that share a sentence: of one kind, since one module, some by what they say as well."""
    groups: dict[tuple[object, ...], list[CellChange]] = {}
    for change in cells:
        by_reason = change.kind in ("does not run", "runs again", "worse verdict", "other verdict", "same bits")
        key = change.kind, change.since if change.kind in REGRESSIONS else None, change.reason if by_reason else None
        groups.setdefault(key, []).append(change)
    return list(groups.values())


def _sentence(group: Sequence[CellChange], upgrade: Upgrade) -> str:
    worst = max(group, key=_far)
    regression = "REGRESSION, " if worst.kind in REGRESSIONS else ""
    count = f"{regression}{worst.kind}, {len(group)} cell{'s' * (len(group) > 1)}"
    most = "the worst: " if len({change.reason for change in group}) > 1 else ""
    since = f", since {worst.since}" if worst.since is not None else ""
    where = ""
    if len(group) < len(upgrade.cells):
        where = f"; in {labels(_records(group), _records(upgrade.cells))}"
    changed = _verdicts(group)
    return f"{count}: {most}{worst.reason}{since}{where}{changed}"


def _records(cells: Sequence[CellChange]) -> list[CellRecord]:
    return [change.pair.new for change in cells]


def _far(change: CellChange) -> float:
    if change.moved is None:
        return 0.0
    exact = change.moved.exact if change.moved.another_function else change.moved.native
    return math.inf if exact is None or math.isnan(exact) else exact


def _verdicts(group: Sequence[CellChange]) -> str:
    """How many verdicts changed, where that is not what the sentence is about."""
    changed = [change.verdicts for change in group if change.verdicts[0] != change.verdicts[1]]
    if not changed or "verdict" in group[0].kind:
        return ""
    words = ", ".join(dict.fromkeys(f"{old} -> {new}" for old, new in changed))
    return f"; {len(changed)} verdict{'s' * (len(changed) > 1)} changed: {words}"


def _end(upgrade: Upgrade) -> list[str]:
    """What the exit code is, why, and what to type."""
    lines = []
    unrecorded = [change for change in upgrade.cells if change.kind == "unrecorded" and change.pair.new.output]
    if unrecorded:
        lines.append(
            "make both sweeps with record=true: a change that moves a cell and its reference alike is seen then"
        )
    if upgrade.regressions:
        kind = upgrade.regressions[0].kind
        worst = max((change for change in upgrade.regressions if change.kind == kind), key=_far)
        lines.append(f"the worst cell: python -m sweeper report {upgrade.new.folder} --cell {worst.pair.new.cell_id}")
    count = len(upgrade.regressions)
    if count:
        why = f"{count} regression{'s' * (count > 1)}"
    elif upgrade.joined.only_old:
        why = f"{len(upgrade.joined.only_old)} cells of OLD are not in NEW"
    else:
        why = "no regression" if not upgrade.exit_code else "no cell could be compared, so that nothing is known"
    return [*lines, f"exit code {upgrade.exit_code}: {why}"]


def as_json(upgrade: Upgrade) -> str:
    """The same as one JSON object; infinity and NaN as null."""
    found = {
        "old": str(upgrade.old.folder),
        "new": str(upgrade.new.folder),
        "exit_code": upgrade.exit_code,
        "environment": {change.name: {"old": change.old, "new": change.new} for change in upgrade.environment},
        "cells": [_row(change) for change in upgrade.cells],
        "only_old": sorted(upgrade.joined.only_old),
        "only_new": sorted(upgrade.joined.only_new),
        "lines": lines(upgrade),
    }
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def _row(change: CellChange) -> dict[str, Any]:
    row: dict[str, Any] = {
        "label": change.label,
        "old_cell": change.pair.old.cell_id,
        "new_cell": change.pair.new.cell_id,
        "kind": change.kind,
        "regression": change.kind in REGRESSIONS,
        "reason": change.reason,
        "since": change.since,
        "old_verdict": change.verdicts[0],
        "new_verdict": change.verdicts[1],
    }
    if change.moved is not None:
        figures = {"rel_l2": change.moved.native, "floor": change.moved.floor, "float64_rel_l2": change.moved.exact}
        figures["float64_noise"] = change.moved.noise
        row |= _finite(figures) | {"texts": change.moved.texts, "tables": _finite(change.moved.tables)}
        row |= {"only_old_modules": change.moved.only_old, "only_new_modules": change.moved.only_new}
    return row


def _finite(figures: Mapping[str, float | None]) -> dict[str, float | None]:
    """JSON has no infinity and no NaN."""
    return {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
