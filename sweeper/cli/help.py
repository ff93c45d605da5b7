"""`--help`: what there is, read from the table of axes and the config folders, so that it cannot go out of date."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sweeper.config import Settings as SweepSettings
from sweeper.config import WandbSettings
from sweeper.models import axes
from sweeper.models.axis import Axis, typed

_TEXT = """\
sweeper: how much a model's outputs moved, where it starts, and which switch did it.

Runs a model once for every cell of a grid, compares every module's output with a reference cell, and prints a row a
cell. Results: OUTPUT_DIR/GRID/SWEEP/cells. The same command skips what is finished.

  python -m sweeper [run] [+grid=NAME] [KEY=VALUE ...] [KEY=A,B ...] [-m]
  python -m sweeper SUBCOMMAND ...        (or, installed: sweeper ...)

Subcommands (SUBCOMMAND --help has more):
{subcommands}

Axes of a cell (several values, separated by commas, make a grid; -m changes nothing):
{axes}

Axes that are config files, here and in --config-dir; their settings are changed with a dot (checkpoint.seed=1,2):
{groups}

Grids:
{grids}

Launchers, who run the cells; their settings are changed with a dot (launcher.workers=2):
{launchers}

Published figures, which measured ones are put beside:
{reported}

Reference: what each cell is compared with; an axis that it does not name is the cell's own. The default:
  'reference={{dtype:float32,load_strategy:dtype_at_load,attention:eager}}'

Settings of the whole sweep:
{settings}

Examples:
  python -m sweeper                                   one cell against float32 eager
  python -m sweeper +grid=bf16_vs_fp32 -m             a grid
  python -m sweeper +grid=bf16_vs_fp32 dry_run=true   what it would do: cells, references, folder
  python -m sweeper +grid=load_strategy checkpoint=tiny_llama wandb.mode=disabled
  python -m sweeper +grid=bf16_vs_fp32 reported=public_issues     published figures beside the measured ones
  python -m sweeper dtype=bfloat16,float16 checkpoint=folder checkpoint.path=FOLDER
  python -m sweeper --config-dir MY_CONF +grid=mine   your own MY_CONF/grid/mine.yaml, checkpoints, inputs, numerics

--cfg job prints the composed config, --hydra-help what Hydra itself offers.
"""


def help_text(config_folders: Sequence[Path], subcommands: Mapping[str, str]) -> str:
    """The help, with the config files that lie in these folders, and what each subcommand is for."""
    scalars = [axis for axis in axes.table() if not axis.group]
    groups = [axis for axis in axes.table() if axis.group]
    wandb = [f"wandb.{field}" for field in WandbSettings.model_fields]
    settings = [field for field in SweepSettings.model_fields if field != "wandb"]
    return _TEXT.format(
        subcommands="\n".join(_entry(name, [purpose]) for name, purpose in subcommands.items()),
        axes="\n".join(_axis(axis, axis.words()) for axis in scalars),
        groups="\n".join(_axis(axis, _options(config_folders, axis.name)) for axis in groups),
        grids=_entry("+grid", _options(config_folders, "grid")),
        launchers=_entry("launcher", _options(config_folders, "launcher")),
        reported=_entry("reported", _options(config_folders, "reported")),
        settings=_entry("", [*settings, *wandb]),
    )


def _options(config_folders: Sequence[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in config_folders for path in (folder / group).glob("*.yaml")})


def _axis(axis: Axis, values: Iterable[str]) -> str:
    """What an axis is, and below it what it may be."""
    about = f"  {axis.name:<15}{axis.help} (default: {typed(axis.default)})"
    return f"{about}\n{textwrap.indent(_entry('', values, width=103), ' ' * 15)}"


def _entry(key: str, values: Iterable[str], width: int = 118) -> str:
    return textwrap.fill(
        ", ".join(values),
        width=width,
        initial_indent=f"  {key:<15}" if key else "  ",
        subsequent_indent=" " * 17 if key else "  ",
    )
