"""One complete set of choices, and how each is shown."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import ConfigDict, model_validator

from sweeper.config.checkpoints import Checkpoint
from sweeper.config.choices import Attention, Batch, Compile, Decode, Dtype, Layout, LoadStrategy, Positions
from sweeper.config.inputs import Inputs
from sweeper.config.parsing import parse
from sweeper.config.words import Frozen, Plain
from sweeper.errors import did_you_mean

ReducedPrecision = Literal["default", "on", "off", "off_no_splitk"]


class Numerics(Frozen):
    """Global flags of torch that change results. None or `default` leaves torch's own default alone.

    Attributes:
        name: label in tables.
        matmul_tf32, cudnn_tf32: TF32 for float32 matrix products, and for cuDNN.
        bf16_reduction, fp16_reduction: reduced-precision reduction in products; `off_no_splitk` forbids split-K too.
        fp16_accumulation: accumulate float16 products in float16.
        blas: the library that runs matrix products.
        deterministic: torch.use_deterministic_algorithms.
    """

    name: Plain
    matmul_tf32: bool | None = None
    cudnn_tf32: bool | None = None
    bf16_reduction: ReducedPrecision = "default"
    fp16_reduction: ReducedPrecision = "default"
    fp16_accumulation: bool | None = None
    blas: Literal["default", "cublas", "cublaslt"] = "default"
    deterministic: bool | None = None


Device = Literal["cpu", "cuda"]

ADDED: dict[str, tuple[Any, Any]] = {}
"""Axes beyond the fields of `Cell`: name -> what a value is validated as, and the default. `models.axes` fills it."""


class Cell(Frozen):
    """One complete set of choices: a field an axis, and behind them the axes that were added."""

    model_config = ConfigDict(extra="allow")

    checkpoint: Checkpoint
    load_strategy: LoadStrategy
    dtype: Dtype
    attention: Attention
    layout: Layout
    positions: Positions
    use_cache: bool
    numerics: Numerics
    inputs: Inputs
    device: Device
    batch: Batch = Batch.INPUTS  # these have defaults: the records of older cells do not state them
    compile: Compile = Compile.OFF
    decode: Decode = Decode.WHOLE

    @model_validator(mode="before")
    @classmethod
    def _with_added(cls, choices: Any) -> Any:
        """Validates the added axes, which pydantic takes as they come."""
        fields = cls.model_fields
        beyond = {axis: value for axis, value in choices.items() if axis not in fields}
        if unknown := beyond.keys() - ADDED:
            raise ValueError(f"{min(unknown)}: no such axis{did_you_mean(min(unknown), [*fields, *ADDED])}")
        added = {axis: parse(kind, beyond.get(axis, default), axis) for axis, (kind, default) in ADDED.items()}
        return {**choices, **added}

    def __hash__(self) -> int:
        return hash(tuple(self.choices().values()))  # pydantic's own leaves out what was added

    def choices(self) -> dict[str, Any]:
        """The value of each axis, in a fixed order."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}

    def axes(self) -> dict[str, str | bool]:
        """A short label an axis, in a fixed order: what tables and W&B configs show."""
        return {axis: label(value) for axis, value in self.choices().items()}


def label(value: Any) -> str | bool:
    """An axis' value as tables and W&B configs show it."""
    if isinstance(value, bool):
        return value
    return str(getattr(value, "name", value)) if not isinstance(value, StrEnum) else value.value
