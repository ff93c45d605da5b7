"""What decides the weights in memory: what is read from the checkpoint, and the cast that follows. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from dataclasses import dataclass

from sweeper.config import Cell, Checkpoint, Dtype, LoadStrategy
from sweeper.models import axes


@dataclass(frozen=True)
class Read:
    """One call of `from_pretrained`, with the move to the device.

    Attributes:
        dtype: asked of `from_pretrained`; None is `"auto"`.
        device_map: `from_pretrained` puts the weights on the device itself.
        cast_before_move: what the model is cast to before it is moved; None is no cast.
        others: the part of every axis that is none of the above.
    """

    checkpoint: Checkpoint
    device: str
    dtype: Dtype | None
    device_map: bool = False
    cast_before_move: Dtype | None = None
    others: tuple[Hashable, ...] = ()


@dataclass(frozen=True)
class WeightsKey:
    """A read, then `.to(cast)` on the device. Attention, flags and layout are switched on a loaded model.

    Strategies that make the same calls have the same key, and those that differ in the cast alone share the read.
    """

    read: Read
    cast: Dtype | None = None

    @classmethod
    def of(cls, cell: Cell) -> WeightsKey:
        read = functools.partial(Read, cell.checkpoint, cell.device, others=axes.parts("weights", cell))
        dtype = cell.dtype
        match cell.load_strategy:
            case LoadStrategy.DTYPE_AT_LOAD:
                return cls(read(dtype))
            case LoadStrategy.AUTOCAST:  # keeps float32 weights
                return cls(read(Dtype.FLOAT32))
            case LoadStrategy.DEVICE_MAP:
                return cls(read(dtype, device_map=True))
            case LoadStrategy.AUTO_THEN_CAST:
                return cls(read(None), cast=dtype)
            case LoadStrategy.CAST_BEFORE_MOVE if cell.device != "cpu" and dtype is not Dtype.FLOAT32:
                return cls(read(Dtype.FLOAT32, cast_before_move=dtype))
            case LoadStrategy.CAST_AFTER_LOAD | LoadStrategy.CAST_BEFORE_MOVE:  # on the CPU nothing is moved
                return cls(read(Dtype.FLOAT32), cast=dtype)
