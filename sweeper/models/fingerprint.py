"""Fingerprints of tensors and models: the same for the same bits, and for others as good as never."""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterable
from types import BuiltinFunctionType, CellType, FunctionType, MethodType, ModuleType, NoneType
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn

from sweeper.models.configs import config_of
from sweeper.models.snapshot import Reach, reach_of, reachable
from sweeper.models.state import state_of

_CHUNK = 2**22  # numbers of 8 bytes: what is held at once beside a tensor on a device
_LOW = 0xFFFFFFFF
_ODD = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio, as int64 has it


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """Fingerprints tensors: names, shapes, dtypes, bits. What lies on a device is summed up there, and awaited once."""
    digest = xxhash.xxh3_128()  # nobody chooses tensors so that they are taken for others
    sums: list[Tensor] = []
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        raw = (
            tensor.detach().contiguous().view(-1).view(torch.uint8)
            if tensor.numel()
            else tensor.new_empty(0, dtype=torch.uint8)
        )
        if raw.device.type == "cpu":
            digest.update(raw.numpy().data)
        elif raw.numel():
            sums += device_sums(raw)
    if sums:
        digest.update(repr(torch.stack([one.to(sums[0].device) for one in sums]).tolist()).encode())
    return digest.hexdigest()


def device_sums(raw: Tensor) -> list[Tensor]:
    """Numbers that tell the bytes of a tensor, in their order, from any others: a sum a chunk, still on the device.

    Each number of 8 bytes is multiplied by an odd one of its place. High bits are mixed into low ones before and
    behind: of a plain sum of products two flipped signs would cancel.
    """
    rest = -len(raw) % 8
    words = torch.cat([raw, raw.new_zeros(rest)]) if rest else raw
    if words.storage_offset() % 8:
        words = words.clone()
    sums = []
    for chunk in words.view(torch.int64).split(_CHUNK):
        mixed = _mixed(chunk).mul_(_weights(len(chunk), chunk.device))
        sums.append(_mixed(mixed).sum())
    return sums


def _mixed(words: Tensor) -> Tensor:
    return (words >> 32).bitwise_and_(_LOW).bitwise_xor_(words)


@functools.lru_cache(maxsize=2)
def _all_weights(device: torch.device) -> Tensor:
    return torch.arange(_CHUNK, dtype=torch.int64, device=device).mul_(_ODD).bitwise_or_(1)


def _weights(number: int, device: torch.device) -> Tensor:
    return _all_weights(device)[:number]


def model_fingerprint(model: nn.Module) -> str:
    """Fingerprints all that a model computes with: parameters, all buffers, classes, modes and config."""
    config = config_of(model)
    said = config.to_json_string(use_diff=False) if hasattr(config, "to_json_string") else ""
    modules = [
        (name, f"{type(module).__module__}.{type(module).__qualname__}", module.training)
        for name, module in model.named_modules()
    ]
    digest = hashlib.sha256(repr(([line for line in said.splitlines() if "dtype" not in line], modules)).encode())
    entries = state_of(model)
    streamed = {name: entry.key for name, entry in entries.items() if entry.key is not None}
    digest.update(repr(streamed).encode())  # where they are read says what they are
    state = ((f"{name} {entry.kind}", entry.tensor) for name, entry in entries.items() if name not in streamed)
    digest.update(fingerprint(state).encode())
    return digest.hexdigest()


_NUMBERS = itertools.count()
_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def attributes_fingerprint(model: nn.Module) -> str:
    """Fingerprints all that hangs on a model beside parameters and buffers: classes, modes, settings, other tensors.

    What a config says of the dtype is left out: a replay in float64 has it say float64.
    """
    state = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    said: list[Any] = []
    for value, reach in reachable(model):
        kind = type(value)
        said.append(f"{kind.__module__}.{kind.__qualname__}")
        if reach is Reach.TENSOR:
            said.append("state" if id(value) in state else _tensor(value))
        elif reach is Reach.GENERATOR:
            said.append(_unlike_any())  # what it will draw is nobody else's
        elif reach is Reach.OBJECT:
            is_config = hasattr(value, "to_json_string")
            said.append([_plain(item) for item in vars(value).items() if not (is_config and "dtype" in item[0])])
        else:
            items = list(map(_plain, value.items() if reach is Reach.MAPPING else value))
            said.append(sorted(items) if isinstance(value, set) else items)
    return hashlib.sha256(repr(said).encode()).hexdigest()


def _tensor(tensor: Tensor) -> str:
    """The fingerprint of a tensor whose numbers lie in memory one by one."""
    has_bytes = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested or tensor.is_conj())
    return fingerprint([("", tensor)]) if has_bytes else _unlike_any()


def _plain(value: Any) -> str:
    """A plain value, or a pair of those; what tells a function, and all else that is not looked through, from another;
    of what is looked through its type."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_plain, value))})"
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    kind: Any = type(value)
    if reach_of(kind) is not Reach.NOTHING:
        return str(kind.__qualname__)
    if isinstance(value, functools.partial):
        return f"partial({', '.join(map(_held, (value.func, *value.args, *sorted(value.keywords.items()))))})"
    if isinstance(value, FunctionType):
        held = *(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items()), *_closure(value)
        return f"{value.__module__}.{value.__qualname__}({', '.join(map(_held, held))})"
    if isinstance(value, MethodType):
        return f"{value.__qualname__} of {_held(value.__self__)}"
    if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (ModuleType, type, NoneType)):
        return f"{value.__module__}.{value.__qualname__}"
    told = repr(value)
    return _unlike_any() if " at 0x" in told else told


def _closure(function: FunctionType) -> list[Any]:
    """What a function holds of the place where it was made."""
    return [cell.cell_contents for cell in function.__closure__ or () if cell != CellType()]


def _held(value: Any) -> str:
    """What a function holds: modules are looked at by themselves, and no other object is known."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_held, value))})"
    if isinstance(value, nn.Module):
        return type(value).__qualname__
    has_more = isinstance(value, FunctionType) and (value.__closure__ or value.__defaults__ or value.__kwdefaults__)
    is_known = isinstance(value, (*_PLAIN, type, FunctionType, BuiltinFunctionType)) and not has_more
    return _plain(value) if is_known else _unlike_any()


def _unlike_any() -> str:
    """Stands for what cannot be told from other; no `id`, which another object has when this one is gone."""
    return f"one of its own: {next(_NUMBERS)}"
