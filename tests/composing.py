"""Composes as the command line does, in this process and without running anything."""

from __future__ import annotations

from pathlib import Path

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from sweeper.cli.compose import arrange
from sweeper.cli.run import config_folder
from sweeper.planning.grid import SweepRequest, expand


def request_of(*arguments: str, user_conf: Path | None = None) -> SweepRequest:
    """The request of `python -m sweeper device=cpu ARGUMENTS`; `user_conf` is a folder of the user's own configs."""
    overrides = [word for word in arrange(["device=cpu", *arguments]) if word != "--multirun"]
    if user_conf is not None:
        overrides.append(f"hydra.searchpath=[file://{user_conf}]")
    with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("config", overrides, run_mode=RunMode.MULTIRUN)
        return expand(loader, master, list(master.hydra.overrides.task))


def write_grid(folder: Path, name: str, body: str) -> Path:
    """A user's own grid: `folder/grid/name.yaml`. Returns `folder`."""
    (folder / "grid").mkdir(exist_ok=True)
    (folder / "grid" / f"{name}.yaml").write_text(f"# @package _global_\n{body}")
    return folder
