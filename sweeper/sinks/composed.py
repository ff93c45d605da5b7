"""`.hydra/`, where Hydra's users look for it: what was composed, and what was typed, beside the cells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import yaml

from sweeper.sinks.sink import Sink

if TYPE_CHECKING:
    from sweeper.planning.plan import Plan

FOLDER = ".hydra"
_BESIDE = ("config_dirs", "overrides", "params", "exclude")  # what a request keeps besides the composed config


class ComposedSink(Sink):
    """Writes `.hydra/config.yaml` and `.hydra/overrides.yaml`, which Hydra's own tools read.

    Args:
        config: as `SweepRequest.config` has it.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        self._config = config

    def sweep_started(self, plan: Plan) -> None:
        super().sweep_started(plan)
        folder = plan.folder / FOLDER
        folder.mkdir(exist_ok=True)
        composed = {key: value for key, value in self._config.items() if key not in _BESIDE}
        composed["hydra"] = {"sweeper": {key: self._config.get(key) for key in ("params", "exclude")}}
        for name, content in (("config", composed), ("overrides", list(self._config.get("overrides", ())))):
            text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=120)
            (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
