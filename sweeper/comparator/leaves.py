"""The leaves of what a model gave: tensors and numbers at any depth of mappings, sequences, dataclasses and objects."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

CACHE = "past_key_values"
_SAYS_NOTHING = (type(None), torch.dtype, torch.device, torch.layout, type)
_DEEPEST = 12  # of nested containers: an object may hold itself


class Leaf(NamedTuple):
    """One leaf of an output.

    Attributes:
        value: the tensor, or why there is none.
        cache: it lies in a cache, which is state of the model carried along.
    """

    name: str
    value: Tensor | str
    cache: bool


def leaves(output: Any) -> list[Leaf]:
    """Every leaf: named by key, or `output`, `output[1]`, ... by index."""
    if isinstance(output, (tuple, list)) and not hasattr(output, "_fields"):
        named: list[tuple[str, Any]] = [
            (f"output[{index}]" if index or not isinstance(value, Tensor) else "output", value)
            for index, value in enumerate(output)
        ]
    elif items := _items(output):
        named = [(str(key), value) for key, value in items]
    else:
        named = [("output", output)]
    return [leaf for name, value in named for leaf in _leaves(name, value, name == CACHE, 0)]


def _leaves(name: str, value: Any, cache: bool, depth: int) -> Iterator[Leaf]:
    if isinstance(value, _SAYS_NOTHING):
        return
    number = _as_tensor(value)
    if number is not None:
        yield Leaf(name, number, cache)
    elif depth > _DEEPEST:
        yield Leaf(name, f"nested deeper than {_DEEPEST} times", cache)
    elif isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
        for index, item in enumerate(value):
            yield from _leaves(f"{name}[{index}]", item, cache, depth + 1)
    elif (items := _items(value)) is not None:
        for key, item in items:
            yield from _leaves(f"{name}.{key}", item, cache, depth + 1)
    else:
        yield from _object_leaves(name, value, cache, depth)


def _object_leaves(name: str, value: Any, cache: bool, depth: int) -> Iterator[Leaf]:
    """The tensors that an object holds; its other attributes say how it works, not what was computed."""
    held = {} if isinstance(value, nn.Module) or callable(value) else getattr(value, "__dict__", {})
    cache = cache or "Cache" in type(value).__name__
    found = [
        leaf
        for key, item in held.items()
        if not isinstance(item, (bool, int, float, str, Enum))
        for leaf in _leaves(f"{name}.{key}", item, cache, depth + 1)
        if isinstance(leaf.value, Tensor)
    ]
    yield from found or [Leaf(name, f"holds no tensor: {type(value).__name__}", cache)]


def _items(value: Any) -> list[tuple[Any, Any]] | None:
    if isinstance(value, Mapping):
        return list(value.items())
    if hasattr(value, "_fields"):
        return [(field, getattr(value, field)) for field in value._fields]
    if is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name, None)) for field in fields(value)]
    return None


def _as_tensor(value: Any) -> Tensor | None:
    """Numbers as they are, words by a digest; None for anything else."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Enum):
        return _as_tensor(f"{type(value).__name__}.{value.name}")
    if isinstance(value, (str, bytes)):
        digest = hashlib.sha256(value.encode() if isinstance(value, str) else value).digest()
        return torch.tensor(list(digest), dtype=torch.uint8)
    if isinstance(value, (bool, int)):
        return torch.tensor(value, dtype=torch.int64) if abs(value) < 2**63 else torch.tensor(float(value)).double()
    if isinstance(value, (float, complex)):
        return torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc":
        return torch.as_tensor(np.asarray(value))
    return None


def numbers(tensor: Tensor) -> Tensor | str:
    """The tensor in a floating-point dtype that holds every value exactly; or why there is none."""
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_complex():
        return torch.view_as_real(tensor.resolve_conj())
    if tensor.is_floating_point():
        known = tensor.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64)
        return tensor if known else tensor.float()
    if tensor.dtype is torch.int64 and tensor.numel() and int(tensor.abs().max()) >= 2**53:
        return torch.stack([tensor >> 32, tensor & 0xFFFFFFFF], -1).double()
    return tensor.double()
