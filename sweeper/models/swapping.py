"""The one place that gives a model's tensors other values or dtypes, and puts the very values back.

The tensor objects stay in their slots, and what refers to them elsewhere (ties, an LSTM's flat weights, an optimizer)
sees the other values too: only what they hold is exchanged.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sweeper.devices import free_bytes

_SHARE_OF_DOUBLES = 8  # of the host's free memory
_SOURCE = "_sweeper_source"  # the attribute of a parameter that has one


class Source:
    """Where the values of a streamed parameter are while the module that owns it does not run.

    The parameter itself then holds a placeholder of its shape, dtype and device, without memory.

    Args:
        read: gives the values, on a device.
        key: two parameters of one key have the same values.
        absent: a few bytes on the device, in all placeholders.
    """

    __slots__ = ("_absent", "_given", "key", "read")

    def __init__(self, read: Callable[[torch.device], Tensor], key: Hashable, absent: Tensor) -> None:
        self.read = read
        self.key = key
        self._absent = absent
        self._given: list[Callable[[Tensor], Tensor]] = []

    @staticmethod
    def of(tensor: Any) -> Source | None:
        """That of a parameter; None of what is in memory all the time."""
        source: Source | None = getattr(tensor, _SOURCE, None)
        return source

    @staticmethod
    def absent(tensor: Tensor) -> Source | None:
        """That of a parameter that holds a placeholder now."""
        source = Source.of(tensor)
        return source if source is not None and source.is_placeholder(tensor) else None

    def parameter(self, shape: torch.Size, dtype: torch.dtype) -> nn.Parameter:
        """A parameter with this source."""
        parameter = nn.Parameter(self._placeholder(shape, dtype), requires_grad=False)
        setattr(parameter, _SOURCE, self)
        return parameter

    def is_placeholder(self, tensor: Tensor) -> bool:
        """Whether it is one, or a view of one."""
        with torch._C.DisableTorchFunction():
            return tensor.untyped_storage().data_ptr() == self._absent.untyped_storage().data_ptr()

    def values(self) -> Tensor:
        """What the parameter would hold, on its device."""
        with _plainly():
            value = self.read(self._absent.device)
            for given in self._given:
                value = given(value)
        return value

    def copied(self) -> Source:
        """The same for another parameter, which can be given other values."""
        copied = Source(self.read, self.key, self._absent)
        copied._given = list(self._given)
        return copied

    def give(self, tensor: Tensor, value: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        """Makes the parameter hold what `value` makes of its values, of that dtype, whenever it is there."""
        self._given.append(value)
        tensor.data = self._placeholder(tensor.shape, dtype)

    def take_back(self) -> None:
        self._given.pop()

    def _placeholder(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        return self._absent.view(dtype)[0].expand(shape)


def is_streamed(model: nn.Module) -> bool:
    """Whether parameters of the model are read as they are used."""
    return any(Source.of(parameter) is not None for parameter in model.parameters())


def sharing_parameter(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of its own on the same memory, or with the same source."""
    own = nn.Parameter(parameter.detach(), requires_grad=parameter.requires_grad)
    if (source := Source.of(parameter)) is not None:
        setattr(own, _SOURCE, source.copied())
    return own


class Given(NamedTuple):
    """What a named tensor is given.

    Attributes:
        value: makes it of what the tensor holds.
        dtype: of what that gives; None: the tensor's own.
    """

    name: str
    value: Callable[[Tensor], Tensor]
    dtype: torch.dtype | None = None


class Swap:
    """What tensors held before they were given something else."""

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor, Source | None]] = []

    def give(self, tensor: Tensor, value: Callable[[Tensor], Tensor], dtype: torch.dtype | None = None) -> None:
        """Makes `tensor` hold what `value` makes of what it holds; of a streamed one, whenever it is there.

        Args:
            dtype: as in `Given`.
        """
        held, source = tensor.data, Source.absent(tensor)
        if source is None:
            tensor.data = value(held)
        else:
            source.give(tensor, value, dtype or held.dtype)
        self._held.append((tensor, held, source))

    def fill(self, parameter: Tensor, value: Callable[[Tensor], Tensor] | None = None) -> None:
        """Brings in the values of a parameter that holds a placeholder, or what `value` makes of them."""
        held, source = parameter.data, Source.absent(parameter)
        assert source is not None, "only what is absent is brought in"
        values = source.values()
        parameter.data = values if value is None else value(values)
        self._held.append((parameter, held, None))

    def put_back(self) -> None:
        """Gives every tensor what it held; the last one first, so that a tensor may be given something twice."""
        while self._held:
            tensor, held, source = self._held.pop()
            if source is not None:
                source.take_back()
            tensor.data = held


@contextlib.contextmanager
def swapped(model: nn.Module, values: Iterable[Given]) -> Iterator[None]:
    """Gives named parameters and buffers other values for as long as the context lasts, however it ends.

    Args:
        values: what is given. Of tied tensors the last one named counts.
    """
    swap = Swap()
    try:
        for name, value, dtype in values:
            swap.give(tensor_of(model, name), value, dtype)
        yield
    finally:
        swap.put_back()


@contextlib.contextmanager
def transplanted(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other modules in the places of these names, for as long as the context lasts, however it ends."""
    with contextlib.ExitStack() as undo:
        for name, module in modules.items():
            parent, _, leaf = name.rpartition(".")
            slots = model.get_submodule(parent)._modules
            undo.callback(slots.__setitem__, leaf, slots[leaf])
            slots[leaf] = module
        yield


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of that qualified name."""
    path, _, leaf = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(path), leaf)
    return tensor


class Doubles:
    """What parameters on a CPU hold, in float64, for the next run of the same values: making it takes long there,
    and next to nothing on a GPU.

    Values that are gone keep nothing, and all take no more than a share of the memory that is free.
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[StorageWeakRef, Tensor]] = {}  # no storage's number is given again meanwhile

    def of(self, held: Tensor) -> Tensor:
        """The values in float64, to be read only."""
        if held.device.type != "cpu" or held.layout is not torch.strided or is_traceable_wrapper_subclass(held):
            return held.double()
        storage = held.untyped_storage()
        key = storage._cdata, held.dtype, held.storage_offset(), held.shape, held.stride()
        if key in self._kept:
            return self._kept[key][1]
        double = held.double()
        self._kept = {key: kept for key, kept in self._kept.items() if not kept[0].expired()}
        nbytes = double.nbytes + sum(kept.nbytes for _, kept in self._kept.values())
        if nbytes <= free_bytes("cpu") // _SHARE_OF_DOUBLES:
            self._kept[key] = StorageWeakRef(storage), double
        return double

    def forget(self) -> None:
        """Keeps nothing more: something may have been written to."""
        self._kept.clear()


@contextlib.contextmanager
def doubled(model: nn.Module, doubles: Doubles | None = None) -> Iterator[None]:
    """The model computes with its state in float64, value for value, for as long as the context lasts.

    Buffers are small, and a forward may write to them: they are float64 all the time. Parameters are while the module
    that owns them runs, so that no more than one module's (and those of the modules it lies in) are in memory twice.
    Whoever reads a parameter without calling its owner gets it as it was loaded: `Lift` sees to that. Scripted code
    calls no hooks, so its parameters are float64 all the time.

    Args:
        doubles: of earlier runs; None: none are kept.
    """
    embeddings = (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
    if doubles is None or any(module.max_norm is not None for module in embeddings):  # torch writes to these weights
        fill = functools.partial(_fill_in_float64, Tensor.double)
    else:
        fill = functools.partial(_fill_in_float64, doubles.of)
    lasting, windows = Swap(), Windows(fill)
    handles: list[Any] = []
    try:
        scripted = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
        for tensor in itertools.chain(model.buffers(), *(module.parameters() for module in scripted)):
            if _is_lower(tensor):
                lasting.give(tensor, Tensor.double)
        for module in model.modules():
            if module not in scripted:
                # prepended: what another hook computes of the parameters (weight norm) is computed in float64 too
                handles += windows.around(module, prepend=True)
        yield
    except BaseException:
        if doubles is not None:
            doubles.forget()  # a run that writes to a parameter raises
        raise
    finally:
        for handle in handles:
            handle.remove()
        windows.close()
        lasting.put_back()


@contextlib.contextmanager
def entirely_doubled(model: nn.Module) -> Iterator[None]:
    """All of its state is in float64 for as long as the context lasts, and calls no hooks for it.

    Raises:
        MemoryError: there is no room for that.
    """
    swap = Swap()
    lower = [tensor for tensor in itertools.chain(model.parameters(), model.buffers()) if _is_lower(tensor)]
    for device in {tensor.device.type for tensor in lower}:
        need = 8 * sum(tensor.numel() for tensor in lower if tensor.device.type == device)
        if need > free_bytes(device) // 2:
            raise MemoryError(f"the model's state in float64 takes {need / 2**30:.3g} GiB")
    try:
        for tensor in lower:
            swap.give(tensor, Tensor.double, torch.float64)
        yield
    finally:
        swap.put_back()


def _fill_in_float64(double: Callable[[Tensor], Tensor], swap: Swap, parameter: Tensor) -> None:
    lower = _is_lower(parameter)
    if Source.absent(parameter) is not None:
        swap.fill(parameter, Tensor.double if lower else None)
    elif lower:
        swap.give(parameter, double)


def fill_if_absent(swap: Swap, parameter: Tensor) -> None:
    """Brings in the values of a streamed parameter, unless they are there."""
    if Source.absent(parameter) is not None:
        swap.fill(parameter)


@contextlib.contextmanager
def _plainly() -> Iterator[None]:
    """Whatever mode a model runs in: a replay would lift what is read, inference tensors are no parameter's."""
    with torch._C.DisableTorchFunction(), torch.inference_mode(False), torch.no_grad():
        yield


class Windows:
    """The modules that are running, the innermost last, each with what its parameters held before.

    Args:
        fill: gives a parameter what it holds while its module runs.
    """

    def __init__(self, fill: Callable[[Swap, Tensor], None]) -> None:
        self._fill = fill
        self._open: list[tuple[nn.Module, Swap]] = []

    def around(self, module: nn.Module, *, prepend: bool = False) -> list[Any]:
        """Hooks a module that owns parameters; gives the handles."""
        if next(module.parameters(recurse=False), None) is None:
            return []
        return [
            module.register_forward_pre_hook(self._enter, prepend=prepend),
            module.register_forward_hook(self._leave, always_call=True),
        ]

    def _enter(self, module: nn.Module, _args: Any) -> None:
        swap = Swap()
        self._open.append((module, swap))  # first: running out of memory below leaves something to put back
        with _plainly():
            for parameter in module.parameters(recurse=False):
                self._fill(swap, parameter)

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if any(running is module for running, _ in self._open):
            self.close(module)

    def close(self, module: nn.Module | None = None) -> None:
        """Puts back what was given to the modules down to `module`; to all where there is none."""
        while self._open:
            running, swap = self._open.pop()
            with _plainly():
                swap.put_back()
            if running is module:
                return


def _is_lower(tensor: Tensor) -> bool:
    """Whether it holds numbers in less than float64."""
    return tensor.is_floating_point() and tensor.dtype is not torch.float64 and not tensor.is_meta
