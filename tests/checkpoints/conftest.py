from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sweeper.config import Checkpoint, parse

CONF = Path(__file__).parents[2] / "conf" / "checkpoint"


@pytest.fixture
def cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    root = tmp_path / "cache"
    monkeypatch.setenv("SWEEPER_CACHE", str(root))
    return root


def shipped(name: str, **changes: Any) -> Any:
    """The checkpoint of `conf/checkpoint/<name>.yaml`, with some settings replaced."""
    data = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return parse(Checkpoint, {**data, **changes}, "checkpoint")
