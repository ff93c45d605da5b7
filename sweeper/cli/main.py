"""The command line. `--help` is answered without Hydra; everything else goes through `sweeper.cli.compose`."""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from sweeper.planning.grid import SweepRequest
    from sweeper.sinks import Sink


SUBCOMMANDS = ("explain", "report", "published")
"""Each is a module of `sweeper.cli` or, for published figures, of their own; `run` is what is done without one."""


def main() -> NoReturn:
    """`sweeper` and `python -m sweeper`. Exit code 0, 1 (a cell failed), 2 (bad input), 130 (Ctrl-C)."""
    if sys.argv[1:2] == ["run"]:
        del sys.argv[1]
    elif sys.argv[1:2] and sys.argv[1] in SUBCOMMANDS:
        _subcommand(sys.argv.pop(1))
    parser = ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--help", "-h", action="store_true")
    asked, _ = parser.parse_known_args(sys.argv[1:])
    if asked.help:
        print(_help(), end="")
        sys.exit(0)
    _let_threads_rest()
    from sweeper.cli.compose import start  # Hydra: half a second that --help does not need

    sys.exit(start(config_folder()))


def _subcommand(name: str) -> NoReturn:
    from importlib import import_module

    import_module("sweeper.published.page" if name == "published" else f"sweeper.cli.{name}").main()
    sys.exit(0)


def _let_threads_rest() -> None:
    """Between two operations torch's OpenMP threads spin, on cores that the threads that measure want: with a
    shorter spin comparing costs a third to a half less there (docs/performance.md). Read when torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")


def carry_out(request: SweepRequest) -> int:
    """Runs a sweep, or prints its plan. Returns the exit code."""
    published = _published(request)
    if request.settings.dry_run:
        from sweeper.environment import environment
        from sweeper.planning.plan import make_plan
        from sweeper.reports.plan import print_plan

        print_plan(make_plan(request, environment(request.device)))
        return 0
    from sweeper.sweep.run import run

    return run(request, published)


def _published(request: SweepRequest) -> list[Sink]:
    """The sink that puts published figures beside the measured ones, where some are asked for."""
    if request.reported is None:
        return []
    from sweeper.config import parse
    from sweeper.published.report import Report
    from sweeper.published.sink import ReportedSink

    return [ReportedSink(parse(Report, request.reported, "reported"))]


def config_folder() -> Path:
    """`conf/`: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def _help() -> str:
    from sweeper.cli.help import help_text

    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path, action="append", default=[config_folder()])
    return help_text(parser.parse_known_args(sys.argv[1:])[0].config_dir)
