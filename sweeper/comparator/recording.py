"""Hooks that hand over every module's output and every leaf module's input, over real tokens; and a run kept whole."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweeper.comparator.hooks import tensors_of
from sweeper.comparator.side import POOLING, Call, Outputs, Side, rows, run


class Event(NamedTuple):
    """One tensor of one module over the real tokens of one call.

    Attributes:
        name: as in `sweeper.comparator.hooks.ModuleOutput`.
        output_NF: the output. input_NF: the first floating-point input of a leaf module, else None.
        own_NF: the output on the reference's input; None where it was not asked for or cannot be had.
    """

    name: str
    module: nn.Module
    output_NF: Tensor
    input_NF: Tensor | None
    own_NF: Tensor | None


@dataclass
class Recorded:
    """Rows of all calls so far."""

    module_type: str
    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def output(self) -> Tensor:
        return torch.cat(self.outputs)

    def input(self) -> Tensor | None:
        return torch.cat(self.inputs) if self.inputs else None


@dataclass
class Recording:
    """A run: every module's tensors in order of execution, and the model's outputs."""

    modules: dict[str, Recorded]
    outputs: Outputs


class Listener:
    """The hooks' side of one run. Tell it each call with `begin`.

    Args:
        take: gets every module's tensors the moment they exist.
        rerun: gives the reference's input rows of a module for this call, on which the module is then run too; or None.
    """

    def __init__(self, take: Callable[[Event], None], rerun: Callable[[str], Tensor | None]) -> None:
        self._take = take
        self._rerun = rerun
        self._calls: Counter[str] = Counter()
        self._call: Call | None = None
        self._rerunning = False

    def begin(self, call: Call) -> None:
        self._call = call
        self._calls.clear()

    def hook(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if self._rerunning or self._call is None:
            return
        count = self._calls[name]
        self._calls[name] += 1
        called = f"{name}#{count}" if count else name
        leaf = next(module.children(), None) is None
        given = _first_floating(args, kwargs) if leaf else None
        input_NF = rows(given, self._call.forward) if given is not None else None
        own = self._own(called, module, args, kwargs, given) if input_NF is not None else None
        for index, tensor in enumerate(tensors_of(output)):
            output_NF = rows(tensor, self._call.forward)
            if output_NF is not None:
                own_NF = rows(own[index], self._call.forward) if own and index < len(own) else None
                self._take(Event(f"{called}[{index}]" if index else called, module, output_NF, input_NF, own_NF))

    def _own(self, name: str, module: nn.Module, args: Any, kwargs: Any, given: Tensor | None) -> list[Tensor] | None:
        """The module's output on the reference's input, in the layout of its own."""
        reference_NF = self._rerun(name)
        if reference_NF is None or given is None or self._call is None:
            return None
        placed = _placed(reference_NF, given, self._call)
        if placed is None:
            return None

        def swap(value: Any) -> Any:
            return placed if value is given else value

        self._rerunning = True
        try:
            return tensors_of(module(*map(swap, args), **{key: swap(value) for key, value in kwargs.items()}))
        finally:
            self._rerunning = False


def _first_floating(args: Any, kwargs: Any) -> Tensor | None:
    values = [*args, *kwargs.values()]
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def _placed(reference_NF: Tensor, given: Tensor, call: Call) -> Tensor | None:
    """`given` with its real tokens replaced by the reference's; its pads stay."""
    B, T = call.forward.inputs["input_ids"].shape
    if given.shape[:2] == (B, T):
        placed = given.flatten(0, 1).clone()
    elif given.shape[0] == B * T:
        placed = given.clone()
    else:
        return None
    if len(reference_NF) != len(call.forward.flat_N):
        return None
    real = reference_NF.to(given).reshape(-1, *placed.shape[1:])
    return placed.index_copy(0, call.forward.flat_N, real).reshape(given.shape)


@contextlib.contextmanager
def listening(model: nn.Module, listener: Listener) -> Iterator[None]:
    """Hooks every module of `model` but the model itself."""
    handles = []
    try:
        for name, module in model.named_modules():
            if name:
                handles.append(module.register_forward_hook(_hook(listener, name), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _hook(listener: Listener, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        listener.hook(name, module, args, kwargs, output)

    return hook


def record(side: Side) -> Recording:
    """Runs a side and keeps everything, copied."""
    recording = Recording({}, {})

    def take(event: Event) -> None:
        recorded = recording.modules.setdefault(event.name, Recorded(type(event.module).__name__))
        recorded.outputs.append(event.output_NF.clone())
        if event.input_NF is not None and "[" not in event.name:
            recorded.inputs.append(event.input_NF.clone())

    listener = Listener(take, lambda _: None)
    with listening(side.model, listener):
        recording.outputs = run(side, listener.begin)
    keep_pooling(recording.modules, recording.outputs)
    return recording


def keep_pooling(modules: dict[str, Recorded], outputs: Outputs) -> None:
    """Counts pooling, which is code behind the model, as its last module."""
    if POOLING in outputs:
        modules[POOLING] = Recorded("pooling", [outputs[POOLING]])
