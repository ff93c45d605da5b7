"""Autocast, which the load strategy of that name puts around a forward."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from sweeper.config import Cell, LoadStrategy
from sweeper.models.axis import Switch


def autocast(cell: Cell) -> AbstractContextManager[Any]:
    """The context of a forward: `torch.autocast` for that load strategy, nothing otherwise."""
    if cell.load_strategy is LoadStrategy.AUTOCAST:
        return torch.autocast(cell.device, getattr(torch, cell.dtype))
    return nullcontext()


def switches(cell: Cell) -> dict[str, Switch]:
    """Autocast, on or off."""
    on = cell.load_strategy is LoadStrategy.AUTOCAST
    value = cell.dtype.value if on else "off"
    # float32 is what autocast's own weights are
    fix = f"load_strategy=autocast dtype={cell.dtype}" if on else "load_strategy=dtype_at_load dtype=float32"
    return {"autocast": Switch(value, fix, lambda: autocast(cell), rounds=True)}
