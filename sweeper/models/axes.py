"""The table of axes: planning, help, ids, what cells share, and the settings around a forward are read from it.

Imports no torch: what puts an axis into effect is imported when it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from importlib import import_module
from typing import Any

from sweeper import config
from sweeper.config import ADDED, Cell, Dtype, Layout, LoadStrategy, Numerics
from sweeper.environment import default_device
from sweeper.errors import ConfigError
from sweeper.models import backends, packages
from sweeper.models.axis import Axis, Key, Switch, nothing

in_read = nothing
"""The part in the weights of an axis that `weights.Read` spells out."""


# ---- what the axes put around a forward --------------------------------------------------------------------------


def _lazy(module: str, function: str) -> Callable[[Cell], Any]:
    """A function of a module that imports torch."""
    return lambda cell: getattr(import_module(f"sweeper.models.{module}"), function)(cell)


def _autocast(cell: Cell) -> Mapping[str, Switch]:
    """`torch.autocast` for the load strategy of that name, on or off."""
    if not _casts(cell):  # float32 is what autocast's own weights are
        return {"autocast": Switch("off", "load_strategy=dtype_at_load dtype=float32", nullcontext, rounds=True)}
    import torch

    context = partial(torch.autocast, cell.device, getattr(torch, cell.dtype))
    return {"autocast": Switch(cell.dtype.value, f"load_strategy=autocast dtype={cell.dtype}", context, rounds=True)}


# ---- what they share ---------------------------------------------------------------------------------------------


def _casts(cell: Cell) -> Hashable:
    return cell.load_strategy is LoadStrategy.AUTOCAST


def _casts_to(cell: Cell) -> Hashable:
    return cell.dtype if _casts(cell) else None


# ---- what cannot run ---------------------------------------------------------------------------------------------


def _casts_to_half_only(cell: Cell) -> str | None:
    if not _casts(cell) or cell.dtype in backends.HALF:
        return None
    return f"autocast casts to bfloat16 or float16 only, not to {cell.dtype}; use another load strategy"


def _splits_k(cell: Cell) -> str | None:
    flags: Numerics = cell.numerics
    forbidden = "off_no_splitk" in (flags.bf16_reduction, flags.fp16_reduction)
    if cell.device != "cuda" or not forbidden or flags.blas == "cublaslt":
        return None
    return "split-K can be forbidden in cuBLASLt only; add numerics.blas=cublaslt"


def _decodes_in_steps(cell: Cell) -> str | None:
    if cell.decode is config.Decode.WHOLE:
        return None
    if cell.layout is Layout.PACKED:
        return "a cache cannot keep packed texts apart; use decode=whole or a padded layout"
    if cell.compile is not config.Compile.OFF:
        return "each step of a cache that grows would be compiled anew; use decode=whole or compile=off"
    return None


@cache
def _has_gpu() -> bool:
    return default_device() == "cuda"


def _no_gpu(cell: Cell) -> str | None:
    return "torch sees no GPU here; use device=cpu" if cell.device == "cuda" and not _has_gpu() else None


# ---- the table ---------------------------------------------------------------------------------------------------

_BUILT_IN = (
    Axis(
        name="checkpoint",
        help="which weights",
        kind=config.Checkpoint,
        default="smollm2_135m_instruct",
        group=True,
        weights=in_read,
        conditions=nothing,
        packages=packages.packages,
    ),
    Axis(
        name="load_strategy",
        help="how the weights get from the file to the device and to the dtype",
        kind=LoadStrategy,
        default="dtype_at_load",
        weights=in_read,
        code=_casts,
        conditions=_casts_to,
        function=nothing,  # the state is compared, and autocast only rounds
        switches=_autocast,
        unsupported=_casts_to_half_only,
    ),
    Axis(
        name="dtype",
        help="what the cell computes in",
        kind=Dtype,
        default="bfloat16",
        aliases={
            "fp32": "float32",
            "bf16": "bfloat16",
            "fp16": "float16",
            "half": "float16",
            "fp64": "float64",
            "double": "float64",
        },
        weights=in_read,
        conditions=nothing,
        function=nothing,
    ),
    Axis(
        name="attention",
        help="the attention backend; sdpa_* pins one kernel",
        kind=config.Attention,
        default="sdpa",
        aliases={backend.alias: name.value for name, backend in backends.BACKENDS.items() if backend.alias},
        weights=nothing,  # switched on a loaded model
        switches=_lazy("attention", "switches"),
        unsupported=backends.unsupported,
        needs=backends.needs,
        packages=backends.packages,
    ),
    Axis(
        name="layout",
        help="how several texts share a forward; padded: on the tokenizer's side",
        kind=Layout,
        default="padded",
        weights=nothing,
        conditions=nothing,
    ),
    Axis(
        name="positions",
        help="pass position_ids, or leave them to the model (which then counts pads too)",
        kind=config.Positions,
        default="explicit",
        weights=nothing,
        conditions=nothing,
    ),
    Axis(
        name="use_cache",
        help="whether the forward makes a key-value cache, as transformers does by default",
        kind=bool,
        default=False,
        weights=nothing,
        conditions=nothing,
    ),
    Axis(
        name="numerics",
        help="torch's global flags",
        kind=Numerics,
        default="default",
        group=True,
        weights=nothing,
        code=nothing,
        switches=_lazy("flags", "switches"),
        without_effect=_lazy("flags", "without_effect"),
        unsupported=_splits_k,
    ),
    Axis(
        name="inputs",
        help="what the model reads",
        kind=config.Inputs,
        default="sentences",
        group=True,
        weights=nothing,
        code=nothing,
        conditions=nothing,
    ),
    Axis(
        name="device",
        help="cuda where there is one, else cpu",
        kind=config.Device,
        default="auto",
        typed={"auto": default_device},
        weights=in_read,
        unsupported=_no_gpu,
    ),
    Axis(
        name="batch",
        help="how many texts share a forward; inputs: as inputs.batch_size says",
        kind=config.Batch,
        default="inputs",
        aliases={"1": "alone", "2": "of_2", "8": "of_8", "32": "of_32", "single": "alone"},
        weights=nothing,
        conditions=nothing,
        forms_calls=True,
    ),
    Axis(
        name="compile",
        help="whether the forward is compiled by torch.compile, and with what",
        kind=config.Compile,
        default="off",
        aliases={"false": "off", "none": "off", "eager": "off", "true": "inductor", "default": "inductor"},
        weights=nothing,
        switches=_lazy("compiled", "switches"),
        without_effect=_lazy("compiled", "without_effect"),
        unsupported=backends.cannot_compile,
        packages=backends.compilers,
    ),
    Axis(
        name="decode",
        help="how tokens reach a decoder: whole, or in steps behind a cache (quantised: 4 bits)",
        kind=config.Decode,
        default="whole",
        aliases={"prefill": "whole", "token": "tokens", "cached": "tokens", "chunks": "chunks_of_16"},
        weights=nothing,
        conditions=nothing,
        forms_calls=True,
        halfway={
            config.Decode.TOKENS_QUANTISED: (config.Decode.TOKENS,),
            config.Decode.CHUNKS_OF_16_QUANTISED: (config.Decode.CHUNKS_OF_16,),
        },
        unsupported=_decodes_in_steps,
        needs=backends.quantises_caches,
    ),
)
_TABLE: dict[str, Axis] = {axis.name: axis for axis in _BUILT_IN}


@cache
def table() -> tuple[Axis, ...]:
    """Every axis, in the order of a cell's fields; those that were registered last."""
    return tuple(_TABLE.values())


def names() -> tuple[str, ...]:
    """The names of all axes."""
    return tuple(_TABLE)


def axis(name: str) -> Axis:
    """The axis of a name."""
    return _TABLE[name]


def groups() -> tuple[str, ...]:
    """The axes whose values are config files."""
    return tuple(axis.name for axis in table() if axis.group)


@cache
def _deciding(key: Key) -> tuple[Axis, ...]:
    return tuple(axis for axis in table() if getattr(axis, key) is not nothing)


def parts(key: Key, cell: Cell) -> tuple[Hashable, ...]:
    """What decides whether two cells share what the key stands for: the part of each axis."""
    return tuple([axis.part(key, cell) for axis in _deciding(key)])


def register(added: Axis) -> None:
    """Adds an axis. Cells that are made from now on have it, in every place where an axis of the package has its own.

    Raises:
        ConfigError: the name is taken, or is no name; the default is none of its values.
    """
    if added.name in _TABLE or added.name in config.Settings.model_fields or not added.name.isidentifier():
        raise ConfigError(f"{added.name}: the name of an axis must be new, and an identifier of Python")
    ADDED[added.name] = (added.kind, config.parse(added.kind, added.default, added.name))
    _TABLE[added.name] = added
    _table_changed()


@contextmanager
def registered(added: Axis) -> Iterator[None]:
    """`register` for as long as the context lasts."""
    register(added)
    try:
        yield
    finally:
        del ADDED[added.name], _TABLE[added.name]
        _table_changed()


def _table_changed() -> None:
    table.cache_clear()
    _deciding.cache_clear()
