"""Hydra's sweeper `grid`: hands what Hydra composed to sweeper. Hydra imports this at every start: nothing heavy here.

No `from __future__ import annotations`: Hydra runs this file before it is in sys.modules, where dataclasses would look
the annotations up.
"""

from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@dataclass
class GridSweeperConfig:
    """`hydra.sweeper`: what a grid file sets.

    Attributes:
        params: axis -> comma string, `range(...)` or `choice(...)`; the product of all is the grid.
        exclude: rules, each axis -> label or list of labels; a combination that matches all of a rule is left out.
    """

    _target_: str = "hydra_plugins.sweeper_grid.GridSweeper"
    _recursive_: bool = False
    params: dict[str, Any] = field(default_factory=dict)
    exclude: list[Any] = field(default_factory=list)


class GridSweeper(Sweeper):
    """Expands a whole grid at once. `params` and `exclude` are read from the config by `sweeper.planning.grid`."""

    def __init__(self, params: Any, exclude: Any) -> None:
        self.launcher = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        """Expands the grid. Hydra drops what a sweeper returns, so the request leaves as an exception; it runs once
        Hydra is left."""
        from sweeper.cli.compose import Expanded
        from sweeper.planning.grid import expand

        assert self.hydra_context is not None
        assert self.config is not None
        raise Expanded(expand(self.hydra_context.config_loader, self.config, arguments))


ConfigStore.instance().store(group="hydra/sweeper", name="grid", node=GridSweeperConfig, provider="sweeper")
