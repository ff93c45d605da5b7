"""`sweeper compare OLD NEW`: one grid in two environments, cell by cell (docs/upgrades.md)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sweeper.cli.arguments import Arguments
from sweeper.errors import ConfigError, printable
from sweeper.records.store import SWEEP_FILE, write_whole
from sweeper.records.sweep import Sweep


def main(arguments: Sequence[str]) -> int:
    """Compares the two sweeps, prints what differs; returns 1 on a regression.

    Raises:
        ConfigError: one of them is no sweep, or has no finished cell.
    """
    asked = _parser().parse_args(arguments)
    old, new = (_read(folder) for folder in (asked.old, asked.new))
    from sweeper.upgrades.findings import compare_sweeps  # torch, where cells were recorded
    from sweeper.upgrades.report import as_json, lines

    upgrade = compare_sweeps(old, new)
    print(printable("\n".join(lines(upgrade))))
    if asked.json is not None:
        try:
            write_whole(asked.json, as_json(upgrade))
        except OSError as error:
            raise ConfigError(f"{asked.json}: cannot be written: {error.strerror}") from None
        print(asked.json)
    return upgrade.exit_code


def _read(folder: Path) -> Sweep:
    """The sweep in a folder; of an output folder that holds one sweep, that one."""
    inside = sorted(path.parent for path in folder.glob(f"*/*/{SWEEP_FILE}"))
    if len(inside) > 1 and not (folder / SWEEP_FILE).is_file():
        raise ConfigError(f"{folder}: holds {len(inside)} sweeps; name one of them, e.g. {inside[0]}")
    sweep = Sweep.read(inside[0] if len(inside) == 1 and not (folder / SWEEP_FILE).is_file() else folder)
    for line in sweep.damaged:
        print(f"sweeper compare: {line}", file=sys.stderr)
    if not sweep.records:
        raise ConfigError(f"{folder}: no cell is finished; run the sweep to its end first")
    return sweep


def _parser() -> Arguments:
    parser = Arguments(
        prog="sweeper compare",
        description="Whether two environments (versions, machines, cards) gave the same in two sweeps of one grid: "
        "names what differs between them, which cells moved beyond their noise, which verdicts changed, and since "
        "which module. Make both sweeps with record=true: what moves a cell and its reference alike is seen then. Exit "
        "code 1 on a regression.",
    )
    parser.add_argument("old", metavar="OLD", type=Path, help="a sweep's folder, or an output folder with one sweep")
    parser.add_argument("new", metavar="NEW", type=Path, help="the same grid's in the other environment")
    parser.add_argument("--json", metavar="FILE", type=Path, help="also write what was found as JSON")
    return parser
