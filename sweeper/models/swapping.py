"""The one place that gives a model's tensors other values or dtypes, and puts the very values back.

The tensor objects stay in their slots, and what refers to them elsewhere (ties, an LSTM's flat weights, an optimizer)
sees the other values too: only what they hold is exchanged.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Swap:
    """What tensors held before they were given something else."""

    def __init__(self) -> None:
        self._held: list[tuple[Tensor, Tensor]] = []

    def give(self, tensor: Tensor, value: Callable[[Tensor], Tensor]) -> None:
        """Makes `tensor` hold what `value` makes of what it holds."""
        held = tensor.data
        tensor.data = value(held)
        self._held.append((tensor, held))

    def put_back(self) -> None:
        """Gives every tensor what it held; the last one first, so that a tensor may be given something twice."""
        while self._held:
            tensor, held = self._held.pop()
            tensor.data = held


@contextlib.contextmanager
def swapped(model: nn.Module, values: Iterable[tuple[str, Callable[[Tensor], Tensor]]]) -> Iterator[None]:
    """Gives named parameters and buffers other values for as long as the context lasts, however it ends.

    Args:
        values: the name of a tensor, and what makes its new value of the one that it holds. Of tied tensors the last
            one named counts.
    """
    swap = Swap()
    try:
        for name, value in values:
            swap.give(tensor_of(model, name), value)
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


@contextlib.contextmanager
def doubled(model: nn.Module) -> Iterator[None]:
    """The model computes with its state in float64, value for value, for as long as the context lasts.

    Buffers are small, and a forward may write to them: they are float64 all the time. Parameters are while the module
    that owns them runs, so that no more than one module's (and those of the modules it lies in) are in memory twice.
    Whoever reads a parameter without calling its owner gets it as it was loaded: `Lift` sees to that. Scripted code
    calls no hooks, so its parameters are float64 all the time.
    """
    lasting, windows = Swap(), _Windows()
    handles: list[Any] = []
    try:
        scripted = [module for module in model.modules() if isinstance(module, torch.jit.ScriptModule)]
        for tensor in itertools.chain(model.buffers(), *(module.parameters() for module in scripted)):
            if _is_lower(tensor):
                lasting.give(tensor, Tensor.double)
        for module in model.modules():
            if module not in scripted and next(module.parameters(recurse=False), None) is not None:
                # prepended: what another hook computes of the parameters (weight norm) is computed in float64 too
                handles.append(module.register_forward_pre_hook(windows.enter, prepend=True))
                handles.append(module.register_forward_hook(windows.leave, always_call=True))
        yield
    finally:
        for handle in handles:
            handle.remove()
        windows.close()
        lasting.put_back()


class _Windows:
    """The modules that are running, the innermost last, each with what its parameters held before."""

    def __init__(self) -> None:
        self._open: list[tuple[nn.Module, Swap]] = []

    def enter(self, module: nn.Module, _args: Any) -> None:
        swap = Swap()
        self._open.append((module, swap))  # first: running out of memory below leaves something to put back
        with torch._C.DisableTorchFunction():
            for parameter in module.parameters(recurse=False):
                if _is_lower(parameter):
                    swap.give(parameter, Tensor.double)

    def leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        if any(running is module for running, _ in self._open):
            self.close(module)

    def close(self, module: nn.Module | None = None) -> None:
        """Puts back what was given to the modules down to `module`; to all where there is none."""
        while self._open:
            running, swap = self._open.pop()
            with torch._C.DisableTorchFunction():
                swap.put_back()
            if running is module:
                return


def _is_lower(tensor: Tensor) -> bool:
    """Whether it has values (a streamed one has none yet) in less than float64."""
    return tensor.is_floating_point() and tensor.dtype is not torch.float64 and not tensor.is_meta
