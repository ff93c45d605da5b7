"""`sweeper wandb-workspace SWEEP_FOLDER`: saves a workspace of Weights & Biases with the charts of a sweep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sweeper.cli.arguments import Arguments
from sweeper.cli.wandb import add_place, settings_of
from sweeper.errors import ConfigError
from sweeper.records.sweep import Sweep
from sweeper.sinks.wandb import require_usable
from sweeper.sinks.wandb.workspace import save, spec_of, workspace_of


def main(arguments: Sequence[str]) -> int:
    """Saves the workspace, or writes it as a file; returns the exit code.

    Raises:
        ConfigError: no such sweep, no login, or a package is missing.
    """
    parser = Arguments(prog="sweeper wandb-workspace", description=__doc__ or "")
    add_place(parser)
    parser.add_argument("--file", type=Path, metavar="FILE", help="write it there; needs no login")
    asked = parser.parse_args(arguments)
    sweep = Sweep.read(asked.sweep)
    settings = settings_of(sweep, asked.project, asked.entity, mode="offline" if asked.file else "online")
    require_usable(settings)
    if asked.file is None:
        print(save(sweep, settings))
        return 0
    text = json.dumps(spec_of(workspace_of(sweep, settings, settings.entity or "")), indent=1) + "\n"
    try:
        asked.file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--file: cannot write {asked.file}: {error.strerror}") from None
    print(asked.file)
    return 0
