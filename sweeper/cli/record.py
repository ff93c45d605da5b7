"""`sweeper record FILE KEY=VALUE ...`: writes what a cell's model gives for its texts (docs/recordings.md)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.cli.arguments import Arguments
from sweeper.errors import ConfigError, UnsupportedError
from sweeper.records.store import RECORDING_SUFFIX as SUFFIX

if TYPE_CHECKING:
    from sweeper.config import Settings, Weights
    from sweeper.planning.grid import SweepRequest
    from sweeper.planning.plan import PlannedCell
    from sweeper.records.recording import Recording


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The options of the command line."""

    file: Path
    modules: tuple[str, ...]
    evidence: bool
    most_mib: float


def main(arguments: Sequence[str]) -> int | str | None:
    """Records the one cell that the arguments choose; returns the exit code.

    Raises:
        SweeperError: bad input, several cells, or a cell that cannot run here.
    """
    parser = _parser()
    asked, choices = parser.parse_known_args(arguments)
    if asked.file.suffix != SUFFIX:
        raise ConfigError(f"{asked.file}: a recording is a file {SUFFIX}; type sweeper record FILE{SUFFIX} KEY=VALUE")
    if not asked.most_mib > 0:
        raise ConfigError(f"--most-mib: must be more than 0 (given: {asked.most_mib:g})")
    options = _Asked(
        file=asked.file,
        modules=tuple(asked.modules.split(",")) if asked.modules else (),
        evidence=asked.evidence,
        most_mib=asked.most_mib,
    )
    from sweeper.cli.compose import start  # Hydra: half a second that --help does not need
    from sweeper.cli.run import config_folder

    return start(choices, config_folder(), partial(_carry_out, asked=options))


def _carry_out(request: SweepRequest, *, asked: _Asked) -> int:
    from sweeper.environment import environment
    from sweeper.planning.plan import make_plan

    if request.recording is not None:
        raise ConfigError("reference: a cell is recorded by itself; leave it out")
    _refuse_what_cannot_be(request.settings, asked.file)
    # a plan asks whether its folder can be written to: here that is the file's
    settings = request.settings.model_copy(update={"output_dir": str(asked.file.parent), "sweep": "recorded"})
    plan = make_plan(replace(request, reference={}, settings=settings), environment(request.device))
    if len(plan.cells) > 1:
        raise ConfigError(
            f"{len(plan.cells)} cells are chosen, and a file holds one; choose one value of each axis, or record all "
            "cells of a sweep: sweeper record=true ..."
        )
    planned = plan.cells[0]
    if planned.unsupported is not None:
        raise UnsupportedError(planned.unsupported)
    recording = _record(planned, plan.environment, asked, settings.weights)
    recording.write(asked.file)
    tensors = ", ".join(name for name in recording.tensors if ":" not in name)
    tokens = sum(map(len, recording.token_ids))
    modules = f" and {len(recording.modules)} modules" if recording.modules else ""
    print(f"{asked.file}: {len(recording.token_ids)} texts, {tokens} tokens: {tensors}{modules}")
    for what, reason in recording.about["left_out"].items():
        print(f"left out: {what} ({reason})")
    print(f"compare others with it: python -m sweeper checkpoint=... reference=recording:{asked.file}")
    return 0


def _refuse_what_cannot_be(settings: Settings, file: Path) -> None:
    """What is known before a weight is read; a setting that would be ignored is refused."""
    from sweeper.planning.preflight import unwritable

    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; type the name of a file")
    if reason := unwritable(file.parent):
        raise ConfigError(f"{file}: its folder {reason}")
    if settings.dry_run:
        raise ConfigError("dry_run: one cell is recorded, there is no plan to show; leave it out")
    if settings.launcher.name != "inline" or settings.isolation != "none":
        raise ConfigError("launcher, isolation: one cell is recorded, by this process; leave them out")


def _record(planned: PlannedCell, environment: dict[str, object], asked: _Asked, weights: Weights) -> Recording:
    from sweeper.recordings.wanted import Wanted  # torch and transformers: not for what is refused
    from sweeper.sweep.runner import Runner

    wanted = Wanted(patterns=asked.modules, evidence=asked.evidence, most_mib=asked.most_mib)
    runner = Runner(environment, weights=weights, say=lambda line: print(line, file=sys.stderr))
    return runner.recording(planned, wanted)


def _parser() -> Arguments:
    parser = Arguments(
        prog="sweeper record",
        usage="sweeper record FILE.safetensors [KEY=VALUE ...] [--modules PATTERN,...] [--evidence] [--most-mib MIB]",
        description="Writes what one cell's model gives for its texts into a file: token ids, logits and "
        "log-probabilities or hidden states, embeddings, and who gave them. KEY=VALUE as in a sweep (sweeper --help).",
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="where to write: a name that ends in .safetensors")
    parser.add_argument(
        "--modules", metavar="PATTERN,...", default="", help="outputs of these modules too: 'model.layers.*', '*'"
    )
    parser.add_argument(
        "--evidence",
        action="store_true",
        help="the noise floor of the modules and the same run in float64 too: some ten more forwards",
    )
    parser.add_argument("--most-mib", metavar="MIB", type=float, default=64, help="what the file may take; default 64")
    return parser
