"""What ran is what was asked for: the backend, the dtype, the flags, the positions, the cache, looked up and tried out.

A choice that did nothing gets a reason, `{choice: reason}`, which the record carries; one that was not obeyed makes the
cell unsupported.
"""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.backends import cuda, cudnn

from sweeper.config import Attention, Cell, Dtype, Layout, LoadStrategy
from sweeper.errors import UnsupportedError
from sweeper.models.backends import BACKENDS
from sweeper.models.flags import chosen, has_splitk_switch, without_effect
from sweeper.models.kinds import run_one_of_each_kind

# ---- the attention backend ----------------------------------------------------------------------------------------


_TAKEN: weakref.WeakKeyDictionary[nn.Module, set[str]] = weakref.WeakKeyDictionary()
"""The backends that were looked up everywhere and were in effect, of models that were switched."""
_CONFIGS: weakref.WeakKeyDictionary[nn.Module, list[tuple[str, Any]]] = weakref.WeakKeyDictionary()
"""What `_configs` found, of models that were looked at."""


def switch_attention(model: nn.Module, implementation: str) -> str | None:
    """Switches a loaded model to a backend of transformers; where it does not take, the model is switched back.

    Returns:
        None where the backend is in effect in every sub-config and module; else why it is not, in one line.
    """
    if model not in _CONFIGS:
        not_in_effect(model, implementation)
    if _known_in_effect(model, implementation):
        return None
    config: Any = model.config
    before = config._attn_implementation
    with _no_warnings():  # that it did not take, which is looked up here
        try:
            model.set_attn_implementation(implementation)  # type: ignore[operator]
            taken = implementation in _TAKEN.get(model, ()) and _known_in_effect(model, implementation)
            reason = None if taken else not_in_effect(model, implementation)
        except (ValueError, ImportError) as error:
            reason = refused(implementation, error)
        if reason is not None:
            model.set_attn_implementation(before)  # type: ignore[operator]
        else:
            _TAKEN.setdefault(model, set()).add(implementation)
    return reason


def _known_in_effect(model: nn.Module, implementation: str) -> bool:
    """Whether a backend is in effect in all places that are known; no other is made but by a switch."""
    known = _CONFIGS.get(model)
    return known is not None and all(config._attn_implementation == implementation for _, config in known)


def not_in_effect(model: nn.Module, implementation: str) -> str | None:
    """Where another backend is in effect than this one; None where there is no such place."""
    _CONFIGS[model] = [*_configs(model)]
    for name, config in _CONFIGS[model]:
        if config._attn_implementation != implementation:
            return (
                f"{type(model).__name__} runs {config._attn_implementation} and not {implementation}"
                f"{f' in {name}' if name else ''}: transformers cannot switch it"
            )
    return None


def _configs(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Every config that decides on an attention, once, with the name of the first module that has it."""
    seen: set[int] = set()
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation") and id(config) not in seen:
            seen.add(id(config))
            yield name, config


def refused(implementation: str, error: Exception) -> str:
    """One line: what transformers says of a backend, up to where it asks for an issue to be opened."""
    text = " ".join(str(error).split()).partition(" Please request")[0].partition(". ")[0].rstrip(".")
    return f'{implementation} cannot be used: transformers says "{text}"'


def operator_mismatch(attention: Attention, kernels: Sequence[str]) -> str | None:
    """Why what the profiler saw is not the backend that was asked for; None where it is, or nothing was seen."""
    if not kernels or any(part in kernel for kernel in kernels for part in BACKENDS[attention].shows):
        return None
    return f"{attention} was asked for, and the profiler saw {', '.join(kernels)}"


@contextmanager
def _no_warnings() -> Iterator[None]:
    logger = logging.getLogger("transformers.modeling_utils")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# ---- dtype and device --------------------------------------------------------------------------------------------


def state_mismatch(model: nn.Module, cell: Cell) -> str | None:
    """Why the parameters are not what the cell asks for: none of its dtype, or some on another device."""
    parameters = [parameter for parameter in model.parameters() if not parameter.is_meta]
    dtypes = {str(parameter.dtype).removeprefix("torch.") for parameter in parameters if parameter.is_floating_point()}
    wanted = Dtype.FLOAT32 if cell.load_strategy is LoadStrategy.AUTOCAST else cell.dtype
    if dtypes and wanted not in dtypes:
        return f"{type(model).__name__} holds {', '.join(sorted(dtypes))} and no {wanted}, which was asked for"
    elsewhere = {parameter.device.type for parameter in parameters} - {cell.device}
    if elsewhere:
        return f"{type(model).__name__} lies on {', '.join(sorted(elsewhere))} in part, and not on {cell.device}"
    return None


# ---- what is around a forward ------------------------------------------------------------------------------------

_CUDNN: Any = cudnn


def _reduction(dtype: str) -> Callable[[], str]:
    def read() -> str:
        name = f"allow_{dtype}_reduced_precision_reduction"
        if getattr(cuda.matmul, name):
            return "on"
        return "off" if not has_splitk_switch() or getattr(cuda.matmul, f"{name}_split_k") else "off_no_splitk"

    return read


_IN_FORCE: dict[str, Callable[[], Any]] = {
    "matmul_tf32": lambda: cuda.matmul.fp32_precision == "tf32",
    "cudnn_tf32": lambda: _CUDNN.conv.fp32_precision == "tf32",
    "bf16_reduction": _reduction("bf16"),
    "fp16_reduction": _reduction("fp16"),
    "fp16_accumulation": lambda: cuda.matmul.allow_fp16_accumulation,
    "blas": lambda: str(cuda.preferred_blas_library()).rpartition(".")[2].lower(),
    "deterministic": torch.are_deterministic_algorithms_enabled,
}


def not_in_force(cell: Cell) -> str | None:
    """Which setting around a forward is not what the cell asks for; to be called inside of one."""
    useless = without_effect(cell)
    for flag, value in chosen(cell.numerics).items():
        if flag not in useless and (found := _IN_FORCE[flag]()) != value:
            return f"numerics.{flag} is {found} during the forward, and not {value}"
    casts = torch.get_autocast_dtype(cell.device) if torch.is_autocast_enabled(cell.device) else None
    wanted = getattr(torch, cell.dtype) if cell.load_strategy is LoadStrategy.AUTOCAST else None
    return None if casts == wanted else f"autocast is to {casts} during the forward, and not to {wanted}"


# ---- tried out ---------------------------------------------------------------------------------------------------


def without_effect_on(model: nn.Module, call: Mapping[str, Any], cell: Cell) -> dict[str, str]:
    """Which arguments do nothing, found by two small calls: axis -> why. To be called in the cell's conditions.

    Args:
        call: what the model is called with; two short texts.

    Raises:
        UnsupportedError: a setting is not in force during the forward.
    """
    reasons: dict[str, str] = {}
    first_layers = _watched(model, call, cell, run=run_one_of_each_kind)
    if call.get("use_cache") and not _has_cache(_watched(model, call, cell)):
        reasons["use_cache"] = f"{type(model).__name__} gives no cache"
    if cell.layout is Layout.PACKED and not cell.checkpoint.causal:
        _check_apart(model, call, cell, _first(_watched(model, call, cell)))
    position_BT = call.get("position_ids")
    if position_BT is not None and position_BT.shape[1] > 1:
        flipped = {**call, "position_ids": position_BT.flip(1)}
        moved = not _equal(first_layers, _watched(model, flipped, cell, run=run_one_of_each_kind))
        # positions that a first layer does not see may matter to a later one
        if not moved and _equal(_watched(model, call, cell), _watched(model, flipped, cell)):
            reasons["positions"] = f"other position_ids change no bit of what {type(model).__name__} gives"
            if cell.layout is Layout.PACKED:
                reasons["layout"] = (
                    f"{type(model).__name__} does not see where a packed text starts: it reads them as one"
                )
    return reasons


def _check_apart(model: nn.Module, call: Mapping[str, Any], cell: Cell, output_1TF: Tensor) -> None:
    """The last token is of another text than the first, so another first token must not change a bit of it.

    Raises:
        UnsupportedError: it does: what is to keep an encoder's packed texts apart is not understood.
    """
    ids_1T = call["input_ids"].clone()
    if call["position_ids"].eq(call["position_ids"][0, 0]).sum() < 2:
        return  # one text alone
    ids_1T[0, 0] = ids_1T[0, -1] if ids_1T[0, 0] != ids_1T[0, -1] else (ids_1T[0, 0] + 1) % (ids_1T.max() + 1)
    other_1TF = _first(_watched(model, {**call, "input_ids": ids_1T}, cell))
    if not torch.equal(output_1TF[0, -1], other_1TF[0, -1]):
        raise UnsupportedError(
            f"{type(model).__name__} does not keep packed texts apart; use a padded layout or single"
        )


def _whole(_model: nn.Module, run: Callable[[], Any]) -> Any:
    return run()


def _watched(
    model: nn.Module, call: Mapping[str, Any], cell: Cell, run: Callable[[nn.Module, Callable[[], Any]], Any] = _whole
) -> Any:
    """The output of a call that `run` makes; looks at the settings when the forward begins."""
    found: list[str | None] = []
    handle = model.register_forward_pre_hook(lambda *_: found.append(not_in_force(cell)))
    try:
        output = run(model, functools.partial(model, **call))
    finally:
        handle.remove()
    if reason := next(filter(None, found), None):
        raise UnsupportedError(reason)
    return output


def _has_cache(output: Any) -> bool:
    names = ("past_key_values", "cache_params", "mems", "state")
    return isinstance(output, Mapping) and any(output.get(name) is not None for name in names)


def _equal(output: Any, other: Any) -> bool:
    """Whether the first tensors are; where there is none, nothing tells them apart."""
    first, second = next(_tensors(output), None), next(_tensors(other), None)
    return first is None or second is None or torch.equal(first, second)


def _first(output: Any) -> Tensor:
    return next(_tensors(output))


def _tensors(output: Any) -> Iterator[Tensor]:
    values = (
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else [output]
    )
    return (value for value in values if isinstance(value, Tensor))
