"""`sweeper published FILE.md SWEEP [SWEEP ...]`: published figures beside those of sweeps, as a page."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from sweeper.cli.arguments import Arguments
from sweeper.records.sweep import Sweep


def main(arguments: Sequence[str]) -> int:
    """Writes the page and, where there are tables over layers, their picture.

    Raises:
        ConfigError: a folder is no sweep, the first was run without published figures, or FILE.md cannot be written.
    """
    parser = Arguments(
        prog="sweeper published",
        description="Writes a page of published figures beside those of sweeps, and as FILE_layers.svg its picture.",
    )
    parser.add_argument("file", type=Path, metavar="FILE.md")
    parser.add_argument(
        "sweeps", type=Path, nargs="+", metavar="SWEEP", help="folders; the first was run with reported=NAME"
    )
    asked = parser.parse_args(arguments)
    from sweeper.published.page import write_page  # after the arguments: what is wrong with them is said at once

    print(*write_page(asked.file, asked.sweeps), sep="\n")
    for line in (line for folder in asked.sweeps for line in Sweep.read(folder).damaged):
        print(f"sweeper published: {line}", file=sys.stderr)
    return 0
