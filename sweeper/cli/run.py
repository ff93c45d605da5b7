"""`sweeper [run]`: runs a sweep. `--help` is answered without Hydra; all else goes through `sweeper.cli.compose`."""

from __future__ import annotations

import contextlib
import os
import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sweeper.planning.grid import SweepRequest


def main(arguments: Sequence[str]) -> int:
    """Shows the help or the version, or composes the arguments and carries them out. Returns the exit code."""
    parser = ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    asked = parser.parse_known_args(arguments)[0]
    if asked.help:
        print(_help(arguments), end="")
        return 0
    if asked.version:
        from sweeper._version import __version__

        print(f"sweeper {__version__}")
        return 0
    _let_threads_rest()
    if any(word.startswith(("launcher=", "isolation=")) for word in arguments):
        from sweeper.launchers.worker_process import start_early
        from sweeper.sweep.needed import NEEDED

        start_early(arguments, NEEDED)
    from sweeper.launchers.collector import collecting_seldom

    with collecting_seldom():
        from sweeper.cli.compose import start  # Hydra: half a second that --help does not need

        return start(arguments, config_folder(), carry_out)


def carry_out(request: SweepRequest) -> int:
    """Runs a sweep, or prints its plan. Returns the exit code."""
    from sweeper.launchers.ready import start_driver
    from sweeper.launchers.registry import make_launcher

    if request.device == "cuda":
        start_driver()  # while torch is imported

    launcher = make_launcher(request.settings)
    if request.settings.dry_run:
        from sweeper.reports.plan import print_plan
        from sweeper.sweep.finished import finished_cells, where

        with contextlib.closing(launcher):
            plan = launcher.plan(request)
        found = finished_cells(
            plan,
            judged=request.settings.verdict,
            recorded=request.settings.record,
            say=lambda line: print(line, file=sys.stderr),
        )
        print_plan(plan, finished={cell_id: where(store, plan) for cell_id, (store, _) in found.items()})
        return 0
    from sweeper.sinks.registry import make_sinks
    from sweeper.sweep.run import run

    return run(request, make_sinks(request), launcher)


def config_folder() -> Path:
    """`conf/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _let_threads_rest() -> None:
    """Shortens the spin of torch's OpenMP threads between two operations, on cores that the threads that measure want:
    comparing costs a third to a half less there (docs/performance.md). Read when torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def _help(arguments: Sequence[str]) -> str:
    from sweeper.cli.help import help_text
    from sweeper.cli.main import SUBCOMMANDS

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[config_folder()])
    return help_text(parser.parse_known_args(arguments)[0].config_dir, SUBCOMMANDS)
