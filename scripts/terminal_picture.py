"""A picture of what a terminal shows of a sweep: docs/images/terminal.svg, by rich's own export.

python -m sweeper +grid=load_strategy checkpoint=tiny_llama device=cpu wandb.mode=disabled
python scripts/terminal_picture.py outputs/load_strategy/SWEEP docs/images/terminal.svg --width 100
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI

from sweeper.records.sweep import Sweep
from sweeper.reports.terminal import print_sweep


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description="Writes what a terminal shows of a sweep as SVG.")
    parser.add_argument("sweep", type=Path, help="outputs/<grid>/<sweep>")
    parser.add_argument("svg", type=Path)
    parser.add_argument("--width", type=int, default=100, help="columns (default: 100)")
    asked = parser.parse_args()
    out = Console(file=io.StringIO(), width=asked.width, record=True, force_terminal=True, highlight=False)
    sweep = Sweep.read(asked.sweep)
    print_sweep(sweep, out)
    out.save_svg(str(asked.svg), title=sweep.command.splitlines()[-1], theme=DIMMED_MONOKAI, unique_id="sweeper")
    print(asked.svg)


if __name__ == "__main__":
    main()
