"""Weights that are stored as integers (or in 4 bits, or packed away): the numbers that they stand for.

Three kinds declare themselves: tensors of a class of their own that can `dequantize` (torchao), torch's dynamically
quantised modules, whose weights are no parameters at all, and the parameters of bitsandbytes.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


@dataclass(frozen=True)
class Quantised:
    """One quantised weight.

    Attributes:
        owner, leaf: the module that has it, and its name there.
        scheme: what it is stored as, e.g. `int8`.
        stored: as it is stored.
    """

    owner: nn.Module
    leaf: str
    scheme: str
    stored: Tensor

    def values(self) -> Tensor:
        """The numbers that it stands for, made anew."""
        return values_of(self.stored)

    def step(self) -> Tensor | None:
        """How far two neighbouring numbers are apart, in a shape that fits them; None where that is not told.

        Of numbers that are stored as floating-point ones: the smallest.
        """
        step, dtype = _step_of(self.stored), self._floating
        return step if step is None or dtype is None else step * torch.finfo(dtype).smallest_normal * self.eps

    @property
    def eps(self) -> float:
        """How far two neighbours are apart relative to their size; 0 where they are not stored as floating point."""
        return 0.0 if self._floating is None else torch.finfo(self._floating).eps

    @property
    def _floating(self) -> torch.dtype | None:
        dtype = getattr(torch, self.scheme, None)
        return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else None


def quantised_state(module: nn.Module) -> Iterator[Quantised]:
    """A module's own quantised weights, those of its children left out; with a bias that is packed with them."""
    for leaf, parameter in module._parameters.items():
        if parameter is not None and is_quantised(parameter):
            yield Quantised(module, leaf, scheme_of(parameter), parameter)
    if _is_packed(module):
        for leaf, stored in _packed(module).items():
            scheme = scheme_of(stored) if stored.is_quantized else _dtype_name(_packed_dtype(module))
            yield Quantised(module, leaf, scheme, stored)


def is_quantised(tensor: Tensor) -> bool:
    """Whether a tensor says of itself that it stands for other numbers than it stores."""
    by_class = is_traceable_wrapper_subclass(tensor) and hasattr(type(tensor), "dequantize")
    return tensor.is_quantized or by_class or _bitsandbytes(tensor) is not None


def scheme_of(tensor: Tensor) -> str:
    """What a quantised tensor is stored as."""
    if (kind := _bitsandbytes(tensor)) is not None:
        return kind
    if tensor.is_quantized:
        return _dtype_name(tensor.dtype)
    target = getattr(tensor, "target_dtype", None)
    stored = target if isinstance(target, torch.dtype) else next(_stored_dtypes(tensor), tensor.dtype)
    return _dtype_name(stored)


def _stored_dtypes(tensor: Any) -> Iterator[torch.dtype]:
    """The dtypes of what a tensor of a class of its own consists of, however deep; its data come first."""
    for name in tensor.__tensor_flatten__()[0]:
        inner = getattr(tensor, name)
        if is_traceable_wrapper_subclass(inner):
            yield from _stored_dtypes(inner)
        else:
            yield inner.dtype


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.").replace("quint", "uint").replace("qint", "int")


def values_of(tensor: Tensor) -> Tensor:
    """The numbers that a quantised tensor stands for, as an ordinary tensor."""
    kind = _bitsandbytes(tensor)
    if kind is None:
        return tensor.detach().dequantize() if is_quantised(tensor) else tensor.detach()
    held: Any = tensor
    if kind == "int8":
        return held.CB.float() * held.SCB[:, None] / 127
    values: Tensor = sys.modules["bitsandbytes"].functional.dequantize_4bit(held.data, held.quant_state)
    return values


def _bitsandbytes(tensor: Any) -> str | None:
    """What a parameter of bitsandbytes is stored as, once it is quantised; None for others."""
    library: Any = sys.modules.get("bitsandbytes")
    if library is None:
        return None
    if isinstance(tensor, library.nn.Params4bit) and tensor.quant_state is not None:
        return str(tensor.quant_state.quant_type)
    return "int8" if isinstance(tensor, library.nn.Int8Params) and tensor.CB is not None else None


def _step_of(tensor: Any) -> Tensor | None:
    if not is_quantised(tensor):
        return None
    if tensor.is_quantized and tensor.qscheme() == torch.per_tensor_affine:
        return torch.tensor(tensor.q_scale(), dtype=torch.float64)
    if tensor.is_quantized:
        shape = [-1 if dim == tensor.q_per_channel_axis() else 1 for dim in range(tensor.dim())]
        return tensor.q_per_channel_scales().double().reshape(shape)
    scale, block = getattr(tensor, "scale", None), getattr(tensor, "block_size", None)
    if not isinstance(scale, Tensor) or block is None or scale.dim() != tensor.dim():
        return None
    for dim, size in enumerate(block):
        if scale.shape[dim] * size != tensor.shape[dim]:
            return None
        scale = scale.repeat_interleave(size, dim) if scale.shape[dim] > 1 else scale
    return scale.detach().double()


def _packing() -> Any:
    """torch's dynamically quantised modules, if anybody imported them."""
    return sys.modules.get("torch.ao.nn.quantized.dynamic")


def _is_packed(module: nn.Module) -> bool:
    packing = _packing()
    return packing is not None and isinstance(module, (packing.Linear, packing.LSTM, packing.GRU))


def _packed(module: Any) -> dict[str, Tensor]:
    """The weights and biases of a dynamically quantised module, by the names of the module that it was made of."""
    if isinstance(module, _packing().Linear):
        bias = module.bias()
        return {"weight": module.weight(), **({} if bias is None else {"bias": bias})}
    return {**module.get_weight(), **module.get_bias()}


def _packed_dtype(module: Any) -> torch.dtype:
    if isinstance(module, _packing().Linear):
        return module._packed_params.dtype
    return module.dtype


def _unpacked(module: Any) -> nn.Module:
    """The module that a dynamically quantised one was made of, with the numbers that its weights stand for."""
    if isinstance(module, _packing().Linear):
        made: nn.Module = nn.Linear(module.in_features, module.out_features, bias=module.bias() is not None)
    else:
        made = getattr(nn, type(module).__name__)(
            module.input_size,
            module.hidden_size,
            module.num_layers,
            bias=module.bias,
            batch_first=module.batch_first,
            dropout=module.dropout,
            bidirectional=module.bidirectional,
        )
    with torch.no_grad():
        for name, value in _packed(module).items():
            made.get_parameter(name).copy_(values_of(value))
    return made.requires_grad_(False).train(module.training)


@contextlib.contextmanager
def dequantised(model: nn.Module, names: Collection[str] | None = None) -> Iterator[None]:
    """Quantised weights below the model are the numbers that they stand for, for as long as the context lasts.

    What quantises activations as it runs does not do that either.

    Args:
        names: of the weights; None: all.
    """

    def wanted(*path: str) -> bool:
        return names is None or ".".join(part for part in path if part) in names

    with contextlib.ExitStack() as undo:
        for prefix, module in list(model.named_modules()):
            for leaf, parameter in module._parameters.items():
                if parameter is not None and is_quantised(parameter) and wanted(prefix, leaf):
                    undo.callback(module._parameters.__setitem__, leaf, parameter)
                    module._parameters[leaf] = nn.Parameter(values_of(parameter), requires_grad=False)
            for name, child in module._modules.items():
                if (
                    child is not None
                    and _is_packed(child)
                    and any(wanted(prefix, name, leaf) for leaf in _packed(child))
                ):
                    undo.callback(module._modules.__setitem__, name, child)
                    module._modules[name] = _unpacked(child)
        yield
