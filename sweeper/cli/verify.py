"""`sweeper verify [SWEEP ...]`: reads every file that has a hash, and says which is not what was written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sweeper.checkpoints import cache
from sweeper.cli.arguments import Arguments
from sweeper.records.sweep import Sweep


def main(arguments: Sequence[str]) -> int:
    """Checks the cache's checkpoints, or the cells of sweeps; returns 1 where a file is not what was written.

    Raises:
        ConfigError: a folder is no sweep.
    """
    parser = Arguments(
        prog="sweeper verify",
        description="Reads every prepared checkpoint in the cache in full, or every cell of the sweeps that are named, "
        "and says which file is not what was written. A damaged checkpoint is removed; the next sweep prepares it "
        "again.",
    )
    parser.add_argument("sweeps", type=Path, nargs="*", metavar="SWEEP", help="outputs/<grid>/<sweep>")
    asked = parser.parse_args(arguments)
    damaged = [line for folder in asked.sweeps for line in _cells(folder)] if asked.sweeps else _checkpoints()
    for line in damaged:
        print(line)
    return int(bool(damaged))


def _cells(folder: Path) -> tuple[str, ...]:
    sweep = Sweep.read(folder)
    print(f"{folder}: {len(sweep.records)} cells are what was written, {len(sweep.damaged)} are not")
    return sweep.damaged


def _checkpoints() -> list[str]:
    damaged = []
    prepared = cache.prepared()
    for folder in prepared:
        wrong = cache.damage(folder, again=True)
        if wrong is not None:
            cache.discard(folder)
            damaged.append(f"{wrong}; {folder.name} is removed, the next sweep prepares it again")
    print(f"{cache.root()}: {len(prepared) - len(damaged)} checkpoints are what was prepared, {len(damaged)} are not")
    return damaged
