"""`--help`: what there is, read from the table of axes and the config folders, so that it cannot go out of date."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, get_args, get_origin

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
  reference=recording:FILE compares with what a model gave elsewhere, in any program (sweeper record).

Settings of the whole sweep, with their defaults:
{settings}

Options: --help, --version; --config-dir DIR; --cfg job (the composed config); --info; --shell-completion install=bash
(zsh, fish); --hydra-help. Of Hydra's own settings hydra.sweeper.params, hydra.sweeper.exclude, hydra.searchpath,
hydra.verbose and hydra/hydra_logging act; any other is refused, with what to type instead.

Environment: SWEEPER_CACHE (where checkpoints are prepared), SWEEPER_WHEELS (a folder of wheels that are not fetched),
HYDRA_FULL_ERROR=1 (errors with their traceback), COLUMNS (the width of what is printed into a file or a pipe).

Exit codes: 0; 1, a cell ended as fail_on says; 2, bad input, before any weight is read; 130, Ctrl-C.

Examples:
  python -m sweeper                                   one cell against float32 eager
  python -m sweeper +grid=bf16_vs_fp32 -m             a grid
  python -m sweeper +grid=bf16_vs_fp32 dry_run=true   what it would do: cells, references, folder
  python -m sweeper +grid=load_strategy checkpoint=tiny_llama wandb.mode=disabled
  python -m sweeper +grid=bf16_vs_fp32 reported=public_issues     published figures beside the measured ones
  python -m sweeper dtype=bfloat16,float16 checkpoint=folder checkpoint.path=FOLDER
  python -m sweeper +grid=bf16_vs_fp32 record=true output_dir=old     then again elsewhere, and sweeper compare old new
  python -m sweeper --config-dir MY_CONF +grid=mine   your own MY_CONF/grid/mine.yaml, checkpoints, inputs, numerics
"""
_SETTINGS_BEGIN, _SETTINGS_END = "# ---- the sweep ----", "\nhydra:"
"""What encloses the settings in conf/config.yaml."""


def help_text(config_folders: Sequence[Path], subcommands: Mapping[str, str]) -> str:
    """The help, with the config files that lie in these folders, and what each subcommand is for."""
    scalars = [axis for axis in axes.table() if not axis.group]
    groups = [axis for axis in axes.table() if axis.group]
    return _TEXT.format(
        subcommands="\n".join(_entry(name, [purpose]) for name, purpose in subcommands.items()),
        axes="\n".join(_axis(axis, axis.words()) for axis in scalars),
        groups="\n".join(_group(axis, _options(config_folders, axis.name)) for axis in groups),
        grids=_entry("+grid", _options(config_folders, "grid")),
        launchers=_entry("launcher", _options(config_folders, "launcher")),
        reported=_entry("reported", _options(config_folders, "reported")),
        settings=_settings(config_folders[0]),
    )


def _settings(folder: Path) -> str:
    """The settings as conf/config.yaml has them, each with its default and its comment."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    entries, group = [], ""
    for line in text.partition(_SETTINGS_BEGIN)[2].partition(_SETTINGS_END)[0].strip().splitlines():
        setting, _, what = line.partition(" # ")
        key, _, default = setting.partition(":")
        group = group if key.startswith(" ") else ""
        if default.strip():
            entries.append(_entry(f"{group}{key.strip()}={default.strip()}", [what], key_width=24))
        else:
            group = f"{key}."
    return "\n".join(entries)


def _options(config_folders: Sequence[Path], group: str) -> list[str]:
    return sorted({path.stem for folder in config_folders for path in (folder / group).glob("*.yaml")})


def _axis(axis: Axis, values: Iterable[str]) -> str:
    """What an axis is, and below it what it may be."""
    about = f"  {axis.name:<15}{axis.help} (default: {typed(axis.default)})"
    return f"{about}\n{textwrap.indent(_entry('', values, width=103), ' ' * 15)}"


def _group(axis: Axis, options: Iterable[str]) -> str:
    """An axis with its config files, and below them the settings that these have."""
    kinds = get_args(get_args(axis.kind)[0]) if get_origin(axis.kind) is Annotated else (axis.kind,)
    fields = dict.fromkeys(name for kind in kinds for name in kind.model_fields)
    settings = _entry("", [f"settings: {', '.join(fields)}"], width=103)
    return f"{_axis(axis, options)}\n{textwrap.indent(settings, ' ' * 15)}"


def _entry(key: str, values: Iterable[str], width: int = 118, key_width: int = 15) -> str:
    return textwrap.fill(
        ", ".join(values),
        width=width,
        initial_indent=f"  {key:<{key_width - 1}} " if key else "  ",
        subsequent_indent=" " * (key_width + 2) if key else "  ",
    )
