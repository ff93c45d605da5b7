"""What a run leaves behind: nothing. Models, arguments and random state are afterwards as they were found."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
import operator
import random
import types
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum, auto
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from sweeper.devices import out_of_memory
from sweeper.errors import ConfigError

# A larger container of what no run changes is put back, but not looked through: a tokenizer's vocabulary.
_MANY = 1000
# What no run changes, or what is not the model's.
_FOREIGN = (type, types.ModuleType, logging.Logger)
_GENERATORS = (torch.Generator, random.Random, np.random.Generator)


@contextlib.contextmanager
def left_as_found(model: nn.Module, *, seed: int = 0) -> Iterator[Snapshot]:
    """Surrounds a run: afterwards the very objects are in the very slots, with the values they had, however it ends.

    Slots are parameters, buffers, submodules, hooks, modes and plain attributes, containers and plain objects in them
    included. The run draws from a random state of its own, and Python's, numpy's and torch's go on as if it had not
    been.

    Args:
        seed: of the run's random state; runs of one seed draw the same.

    Raises:
        ConfigError: the run wrote into a parameter. Buffers are copied beforehand; parameters are too large for that.
    """
    found = Snapshot(model)
    with _random_state(seed):
        try:
            yield found
        finally:
            written = found.put_back()
    if written:
        raise ConfigError(
            f"{type(model).__name__} writes into its own parameter {_name_of(model, written[0])} as it runs: its runs "
            "cannot be compared; keep what is written in a buffer (given: a parameter, changed by now)"
        )


def _name_of(model: nn.Module, tensor: Tensor) -> str:
    names = (name for name, parameter in model.named_parameters(remove_duplicate=False) if parameter is tensor)
    return next(names, "(without a name)")


def fresh(calls: Iterable[Mapping[str, Any]], dtype: torch.dtype | None = None) -> list[dict[str, Any]]:
    """The arguments of a run's calls, copied: what a model writes into them (a cache that grows) is the run's own.

    What several arguments or calls share, their copies share. Modules are passed on as they are, and so is what
    cannot be copied.

    Args:
        dtype: of the copies of floating-point tensors, however deep they lie; None: their own.
    """
    calls = [dict(call) for call in calls]
    copies: dict[int, Any] = {}
    for value, reach in reachable(calls):
        if reach is Reach.TENSOR:
            wanted = dtype if value.is_floating_point() else None
            copies[id(value)] = value.detach().to(wanted, copy=True)  # a deep copy refuses what has a history
        elif isinstance(value, nn.Module):
            copies[id(value)] = value
    return [{name: _copied(value, copies) for name, value in call.items()} for call in calls]


def _copied(value: Any, copies: dict[int, Any]) -> Any:
    try:
        return copy.deepcopy(value, copies)
    except Exception as error:  # whatever a foreign object raises: it cannot be copied (an open file, a lock)
        if out_of_memory(error):
            raise
        return value


class Reach(Enum):
    """What kind of thing hangs on a model or an argument."""

    NOTHING = auto()  # what no run changes
    TENSOR = auto()
    GENERATOR = auto()  # of random numbers
    MAPPING = auto()
    ITEMS = auto()
    TUPLE = auto()
    OBJECT = auto()  # with attributes: a module, a cache


# a walk compares with them hundreds of times, and looks these up faster than an enum's members
_NOTHING, _TENSOR, _GENERATOR = Reach.NOTHING, Reach.TENSOR, Reach.GENERATOR
_MAPPING, _ITEMS, _TUPLE, _OBJECT = Reach.MAPPING, Reach.ITEMS, Reach.TUPLE, Reach.OBJECT


@functools.lru_cache(maxsize=4096)  # asked thousands of times a run
def reach_of(kind: Any) -> Reach:
    """What the values of a type are."""
    if issubclass(kind, Tensor):
        return Reach.TENSOR
    if issubclass(kind, _GENERATORS):
        return Reach.GENERATOR
    if issubclass(kind, dict):
        return Reach.MAPPING
    if issubclass(kind, (list, set, deque)):
        return Reach.ITEMS
    if issubclass(kind, tuple):
        return Reach.TUPLE
    if issubclass(kind, nn.Module):
        return Reach.OBJECT
    is_function = any("__call__" in vars(base) for base in kind.__mro__)
    has_attributes = kind.__dictoffset__ != 0
    return Reach.NOTHING if is_function or not has_attributes or issubclass(kind, _FOREIGN) else Reach.OBJECT


def reachable(root: Any, empty: list[Any] | None = None) -> Iterator[tuple[Any, Reach]]:
    """What hangs on `root`, itself first, each once, but for empty containers: a module has a dozen of them.

    Args:
        empty: takes the empty containers, which are then not given.
    """
    seen: dict[int, Any] = {}  # keeps what it has seen, so that no id is given twice
    waiting = [root]
    while waiting:
        value = waiting.pop()
        kind: Any = type(value)
        reach = reach_of(kind)
        if reach is _NOTHING:
            continue
        if (reach is _MAPPING or reach is _ITEMS) and not value:
            if empty is None:
                yield value, reach
            else:
                empty.append(value)
            continue
        if id(value) in seen:
            continue
        seen[id(value)] = value
        yield value, reach
        values: Iterable[Any] = ()
        if reach is _OBJECT:
            values = value.__dict__.values()
        elif reach is _MAPPING:
            values = value.values() if len(value) <= _MANY else _few(value.values())
        elif reach is _ITEMS or reach is _TUPLE:
            values = value if len(value) <= _MANY else _few(value)
        if empty is None:
            waiting.extend(values)
            continue
        for held in values:  # what need not wait is put aside here, in half the time
            kind = type(held)
            reach = reach_of(kind)
            if reach is not _NOTHING:
                (empty if (reach is _MAPPING or reach is _ITEMS) and not held else waiting).append(held)


def _few(values: Collection[Any]) -> Collection[Any]:
    """Those of a large container; none where they are what no run changes, such as a vocabulary."""
    kind: Any = type(next(iter(values)))
    return () if reach_of(kind) is Reach.NOTHING else values


class Snapshot:
    """What a model holds, and all that hangs on it."""

    def __init__(self, model: nn.Module) -> None:
        self._attributes: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._mappings: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._items: list[tuple[Any, list[Any]]] = []
        self._empty: list[Any] = []
        self._tensors: list[_Held] = []
        self._undo: list[Callable[[], object]] = []
        renormalised: set[int] = set()
        for value, reach in reachable(model, self._empty):
            if reach is _OBJECT:
                self._attributes.append((value.__dict__, value.__dict__.copy()))
                if isinstance(value, (nn.Embedding, nn.EmbeddingBag)) and value.max_norm is not None:
                    renormalised.add(id(value.weight))  # torch itself writes to it in the forward
            elif reach is _MAPPING:
                self._mappings.append((value, dict(value)))
            elif reach is _TENSOR:
                self._tensors.append(_Held(value))
            elif reach is _GENERATOR:
                self._undo.append(_generator_state(value))
            elif reach is _ITEMS:
                self._items.append((value, list(value)))
        for held in self._tensors:
            if not isinstance(held.tensor, nn.Parameter) or id(held.tensor) in renormalised:
                held.copy_values()

    def lasting(self, tensor: Tensor) -> Tensor:
        """The tensor with the values that it has now, even if it is (a view of) one that is put back.

        Ask only once the run is over.
        """
        memory = _memory(tensor)
        return tensor.clone() if memory is None or memory in self._memories else tensor

    @functools.cached_property
    def _memories(self) -> set[int | None]:
        return {_memory(held.tensor) for held in self._tensors}

    def put_back(self) -> list[Tensor]:
        """Puts all back, and gives the parameters that were written to, whose values are lost."""
        if any(self._empty):
            for container in filter(None, self._empty):
                container.clear()
        for attributes, held in self._attributes:
            # names that are equal are the same, and lists of them are soon compared
            if [*attributes] != [*held] or not all(map(operator.is_, attributes.values(), held.values())):
                _refill(attributes, held)
        for mapping, held in self._mappings:
            _refill(mapping, held)
        for items, values in self._items:
            if len(items) != len(values) or not all(map(operator.is_, items, values)):
                items.clear()
                items.update(values) if isinstance(items, set) else items.extend(values)
        for undo in self._undo:
            undo()
        return [held.tensor for held in self._tensors if not held.put_back()]


def _refill(mapping: dict[Any, Any], held: dict[Any, Any]) -> None:
    """Makes a dictionary hold these objects, in this order, where it does not."""
    if (
        len(mapping) == len(held)
        and all(map(operator.is_, mapping.values(), held.values()))
        and all(map(operator.is_, mapping, held))
    ):
        return
    base = OrderedDict if isinstance(mapping, OrderedDict) else dict  # subclasses refuse some of it
    base.clear(mapping)
    for name, value in held.items():
        base.__setitem__(mapping, name, value)


class _Held:
    """A tensor, what it holds and its flags."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._data = None if is_traceable_wrapper_subclass(tensor) else tensor.data
        self._copy: Tensor | None = None
        self._writes = _writes(tensor)
        self._flags = (tensor.requires_grad, tensor.grad) if tensor.is_leaf else None

    def copy_values(self) -> None:
        """Where there are any, and nothing expanded: no operation writes to that."""
        expanded = self.tensor.layout is torch.strided and any(
            step == 0 and size > 1 for step, size in zip(self.tensor.stride(), self.tensor.shape, strict=True)
        )
        if not self.tensor.is_meta and not expanded:
            self._copy = self.tensor.detach().clone()

    def put_back(self) -> bool:
        """Puts all back; whether the values are what they were."""
        tensor = self.tensor
        if self._data is not None and not _same_memory(tensor, self._data):
            tensor.data = self._data
        if self._flags is not None:
            requires_grad, grad = self._flags
            if tensor.requires_grad is not requires_grad:
                tensor.requires_grad_(requires_grad)
            if tensor.grad is not grad:
                tensor.grad = grad
        if self._copy is None:
            return _writes(tensor) == self._writes
        # always, because batch norm writes its statistics uncounted; by `.data`, because a user's graph counts
        with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
            tensor.data.copy_(self._copy)
        return True


def _memory(tensor: Tensor) -> int | None:
    """Where its storage lies; None where it has none of its own."""
    with torch._C.DisableTorchFunction():  # a replay in float64 would look at a copy
        has_none = tensor.layout is not torch.strided or tensor.is_meta or is_traceable_wrapper_subclass(tensor)
        return None if has_none else tensor.untyped_storage().data_ptr() or None


def _writes(tensor: Tensor) -> int | None:
    """How often torch has written to it; None where torch does not count."""
    return None if tensor.is_inference() else tensor._version


def _same_memory(tensor: Tensor, data: Tensor) -> bool:
    return (tensor.dtype, tensor.shape, tensor.device) == (data.dtype, data.shape, data.device) and (
        tensor.is_meta or tensor.layout is not torch.strided or tensor.data_ptr() == data.data_ptr()
    )


def _generator_state(generator: Any) -> Callable[[], object]:
    """What puts a generator back to the state that it has now."""
    if isinstance(generator, torch.Generator):
        state = generator.get_state()
        return lambda: generator.set_state(state)
    if isinstance(generator, random.Random):
        drawn = generator.getstate()
        return lambda: generator.setstate(drawn)
    bits = generator.bit_generator.state
    return lambda: setattr(generator.bit_generator, "state", bits)


@contextlib.contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Python's, numpy's and torch's own generators begin at `seed`, and afterwards go on where they were."""
    generators = [torch.default_generator]
    if torch.cuda.is_initialized():
        generators += torch.cuda.default_generators
    states = [generator.get_state() for generator in generators]
    drawn, drawn_numpy = random.getstate(), np.random.get_state()
    try:
        for generator in generators:
            generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        random.setstate(drawn)
        np.random.set_state(drawn_numpy)
