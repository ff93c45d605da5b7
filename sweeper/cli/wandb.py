"""`sweeper wandb SWEEP_FOLDER`: writes the runs of a sweep that Weights & Biases has not, from its files alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from sweeper.cli.arguments import Arguments
from sweeper.config import WandbSettings, parse
from sweeper.records.sweep import Sweep
from sweeper.sinks.wandb import about_sweep, require_usable
from sweeper.sinks.wandb.writer import RunWriter


def main(arguments: Sequence[str]) -> int:
    """Writes the runs that are missing; returns the exit code.

    Raises:
        ConfigError: no such sweep, or W&B cannot be used so.
    """
    parser = Arguments(prog="sweeper wandb", description=__doc__ or "")
    add_place(parser)
    parser.add_argument("--online", action="store_true", help="to the server; else into the sweep's folder")
    asked = parser.parse_args(arguments)
    sweep = Sweep.read(asked.sweep)
    for line in sweep.damaged:
        print(f"sweeper wandb: {line}", file=sys.stderr)
    settings = settings_of(sweep, asked.project, asked.entity, mode="online" if asked.online else "offline")
    require_usable(settings)
    writer = RunWriter(settings, about_sweep(sweep))
    cells = sum(writer.cell(record, partial(sweep.modules, record.cell_id)) for record in sweep.records)
    of_all = writer.sweep(sweep.records)
    writer.close()
    print(f"{cells} cells and {'the' if of_all else 'no'} run of the sweep written; the others have a finished run")
    if not asked.online:
        print(f"to upload them: cd {sweep.folder} && wandb sync --yes")
    return int(writer.failed)


def add_place(parser: Arguments) -> None:
    """The arguments that say which sweep, and where in W&B."""
    parser.add_argument("sweep", type=Path, metavar="SWEEP_FOLDER", help="outputs/<grid>/<sweep>")
    parser.add_argument("--project", help="in place of the one that the sweep was run with")
    parser.add_argument("--entity", help="a user or a team, likewise")


def settings_of(sweep: Sweep, project: str | None, entity: str | None, *, mode: str) -> WandbSettings:
    """Those that the sweep was run with, as far as nothing else is typed."""
    stated: dict[str, Any] = {**sweep.description.config.get("wandb", {}), "mode": mode}
    typed = {key: value for key, value in (("project", project), ("entity", entity)) if value is not None}
    settings: WandbSettings = parse(WandbSettings, stated | typed, "wandb")
    return settings
