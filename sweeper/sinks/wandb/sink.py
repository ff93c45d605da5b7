"""The sink of Weights & Biases: hears of a sweep's cells as they end, and writes what has no finished run.

`wandb` is imported only where it is used: `wandb.mode=disabled` works without the package.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from sweeper.config import WandbSettings
from sweeper.errors import ConfigError, DamagedError
from sweeper.records.cell import CellRecord, ModuleRecord
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep, read_description, varying_axes
from sweeper.sinks.sink import Sink
from sweeper.sinks.wandb.writer import About, RunWriter, first_line

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan


def make_wandb_sink(settings: WandbSettings) -> WandbSink | None:
    """The sink that `settings` ask for, or None for `disabled`. Touches no network.

    Raises:
        ConfigError: see `require_usable`.
    """
    if settings.mode == "disabled":
        return None
    require_usable(settings)
    return WandbSink(settings)


def require_usable(settings: WandbSettings) -> None:
    """Checks all that can be checked before a sweep.

    Raises:
        ConfigError: the package is missing; the project, a tag or the server's address is none; or `online` without a
            usable login.
    """
    try:
        import wandb
    except ImportError:
        needed = "needs the package wandb: pip install 'sweeper[wandb]' (or wandb), or type wandb.mode=disabled"
        raise ConfigError(f"wandb.mode={settings.mode} {needed}") from None
    for name, given in (("project", settings.project), ("run_tags", settings.tags), ("entity", settings.entity)):
        try:
            wandb.Settings(**{name: given})
        except (wandb.Error, ValueError) as error:
            raise ConfigError(f"wandb.{name.removeprefix('run_')}: {_reason(error)}") from None
    try:
        wandb.setup(settings=wandb.Settings(silent=True, mode=settings.mode))
        logged_in = settings.mode == "offline" or wandb.login(prompt=False, verify=False)
    except ValueError as error:
        raise ConfigError(
            f"W&B refuses what its settings or the environment say: {_reason(error)}; unset it, or wandb.mode=disabled"
        ) from None
    except wandb.Error as error:
        raise ConfigError(f"wandb.mode={settings.mode}: {first_line(error)}") from None
    if not logged_in:
        raise ConfigError(
            "wandb.mode=online, but nobody is logged in: run `wandb login`, set WANDB_API_KEY, or wandb.mode=offline"
        )


def _reason(error: Exception) -> str:
    """One line of what wandb says; of pydantic's several, the setting and what is wrong with it."""
    lines = [line.strip() for line in str(error).splitlines()]
    if len(lines) < 3:
        return lines[0]
    return f"{lines[1]}: {lines[2].partition(' [type=')[0]}"


class WandbSink(Sink):
    """Logs to W&B, into `<plan.folder>/wandb`. Made by `make_wandb_sink`."""

    def __init__(self, settings: WandbSettings) -> None:
        self._settings = settings
        self._skipped: list[CellRecord] = []

    def sweep_started(self, plan: Plan) -> None:
        super().sweep_started(plan)
        about = About(
            folder=plan.folder,
            grid=plan.grid,
            sweep=plan.sweep,
            cell_ids=tuple(planned.cell_id for planned in plan.cells),
            varying=tuple(varying_axes([planned.cell.axes() for planned in plan.cells])),
            command=_command(plan),
        )
        self._writer = RunWriter(self._settings, about)

    def cell_skipped(self, record: CellRecord) -> None:
        self._skipped.append(record)  # another process may be writing its run: what is still missing is, at the end

    def cell_finished(self, record: CellRecord, modules: Sequence[ModuleRecord]) -> None:
        self._writer.cell(record, lambda: modules)

    def sweep_finished(self, records: Sequence[CellRecord]) -> None:
        store = Store(self.plan.folder)
        for record in self._skipped:
            self._writer.cell(record, partial(store.modules, record.cell_id))
        try:  # its folder may hold cells of earlier commands too
            sweep = self.swept
        except (ConfigError, DamagedError):
            self._writer.sweep(records)
        else:
            self._writer.about = about_sweep(sweep)
            self._writer.sweep(sweep.records)
        self._writer.close()

    def interrupted(self, records: Sequence[CellRecord]) -> None:
        self._writer.close()


def about_sweep(sweep: Sweep) -> About:
    """What the runs say of a sweep that was read from its folder."""
    description = sweep.description
    return About(
        folder=sweep.folder,
        grid=description.grid,
        sweep=description.sweep,
        cell_ids=tuple(pair.cell_id for pair in description.cells),
        varying=tuple(sweep.varying),
        command=sweep.command,
    )


def _command(plan: Plan) -> str:
    try:
        return Sweep(plan.folder, read_description(plan.folder), ()).command
    except (ConfigError, DamagedError):  # nothing was written yet
        return ""
