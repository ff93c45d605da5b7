"""The command line. `--help` is answered without Hydra; everything else goes through `sweeper.compose`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sweeper.grid import SweepRequest


def main() -> NoReturn:
    """`sweeper` and `python -m sweeper`. Exit code 0, 1 (a cell failed), 2 (bad input), 130 (Ctrl-C)."""
    parser = ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    asked, _ = parser.parse_known_args(sys.argv[1:])
    if asked.help:
        print(_help(), end="")
        sys.exit(0)
    _let_threads_rest()
    from sweeper.compose import start  # Hydra: half a second that --help does not need

    sys.exit(start(config_folder()))


def _let_threads_rest() -> None:
    """Between two operations torch's OpenMP threads spin, on cores that the threads that measure want: with a
    shorter spin comparing costs a third to a half less there (docs/performance.md). Read when torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def carry_out(request: SweepRequest) -> int:
    """Runs a sweep, or prints its plan. Returns the exit code."""
    if request.settings.dry_run:
        from sweeper.dry_run import print_plan
        from sweeper.environment import environment
        from sweeper.plan import make_plan

        print_plan(make_plan(request, environment(request.device)))
        return 0
    from sweeper.app import run

    return run(request)


def config_folder() -> Path:
    """`conf/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _help() -> str:
    from sweeper.help import help_text

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[config_folder()])
    return help_text(parser.parse_known_args(sys.argv[1:])[0].config_dir)
