"""The launchers by name. A new one is a module beside this one, a line here, and its settings in `sweeper.config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sweeper.config import Settings
from sweeper.launchers.gpus import make_gpus_launcher
from sweeper.launchers.inline import InlineLauncher
from sweeper.launchers.launcher import Launcher
from sweeper.launchers.processes import ProcessLauncher
from sweeper.launchers.ray import make_ray_launcher
from sweeper.launchers.slurm import make_slurm_launcher


def _inline(settings: Settings) -> Launcher:
    return ProcessLauncher([{}], settings.cell_timeout_s) if settings.isolation == "process" else InlineLauncher()


LAUNCHERS: Mapping[str, Callable[[Settings], Launcher]] = {
    "inline": _inline,
    "gpus": make_gpus_launcher,
    "ray": make_ray_launcher,
    "slurm": make_slurm_launcher,
}


def make_launcher(settings: Settings) -> Launcher:
    """The launcher that the settings ask for."""
    return LAUNCHERS[settings.launcher.name](settings)
