"""Hooks on every module: each output is handed over in token order the moment it exists, and nothing is kept here."""

from __future__ import annotations

import dataclasses
import functools
import math
import weakref
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.hooks import RemovableHandle

from sweeper.inputs.layout import Step, Tokens, is_second_map, to_tokens


class ModuleOutput(NamedTuple):
    """One tensor that one module gave, over the real tokens of one forward.

    Attributes:
        name: qualified name; `name[1]` for the second tensor of a tuple, `name#1` for the second call in one forward.
        module_type: class name of the module.
        tensor_NF: tokens by features; may be a view of the module's output.
        original: the module's output.
    """

    name: str
    module_type: str
    tensor_NF: Tensor
    original: Tensor

    def lasting(self, steady: Container[str]) -> Tensor:
        """`tensor_NF` as it is now, whatever the model does when it goes on.

        Args:
            steady: names of the outputs that no later module overwrites (`steady_in_call`); the others are copied.
        """
        return self.tensor_NF if self.name in steady else lasting(self.tensor_NF, self.original)


def lasting(rows_NF: Tensor, tensor: Tensor) -> Tensor:
    """Rows of a tensor, copied where they are a view of it."""
    with torch._C.DisableTorchFunction():  # a replay in float64 would look at the address of a copy
        return rows_NF.clone() if rows_NF.data_ptr() == tensor.data_ptr() else rows_NF


class Capture:
    """The hooks' side of one run. Tell it of each call of the model with `begin`, and with `end` when it is over.

    Args:
        take: gets every output of a module.
        steady: names of outputs that no later module overwrites: where a block gives its last module's output on, the
            rows that were picked out of it are handed over again.

    Attributes:
        unaligned: outputs that have no token dimension, by name, with the shape.
    """

    rows = staticmethod(to_tokens)

    def __init__(self, take: Callable[[ModuleOutput], object], steady: Container[str] = frozenset()) -> None:
        self._take = take
        self._steady = steady
        self._picked: tuple[Callable[[], Tensor | None], Callable[[], Tensor | None]] = _nothing, _nothing
        self._id = RemovableHandle(OrderedDict()).id  # of all its hooks: no other has it
        self._calls: dict[str, int] = {}
        self._tokens: Tokens | None = None
        self._home = torch.device("cpu")  # of the tokens of the call
        self._home_number = -1  # what `get_device` says there
        self._B = self._T = -1
        self._index_N: Tensor | None = None  # of the tokens; None where there are no pads
        self._places: list[Tensor] = []  # of the tokens of each step, in a call that is made in steps
        self._steps: dict[str, tuple[str, list[Tensor]]] = {}
        self.unaligned: dict[str, str] = {}

    def begin(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._calls.clear()
        if isinstance(tokens, Step):
            self._places.append(tokens.place_N)
        self._home, self._home_number = tokens.flat_N.device, tokens.flat_N.get_device()
        self._B, self._T = tokens.shape
        self._picked = _nothing, _nothing
        self._index_N = None if len(tokens.flat_N) == math.prod(tokens.shape) else tokens.flat_N

    def end(self) -> None:
        """The call that was begun is over: what came step by step is put in the order of the call's tokens."""
        if self._places:
            self._put_in_order(torch.cat(self._places).argsort())
            self._places = []

    def _put_in_order(self, order_N: Tensor) -> None:
        """Hands over what the steps gave."""
        for name, (module_type, pieces) in self._steps.items():
            token_NF = in_order(pieces, order_N)
            if token_NF is None:
                self.unaligned[name] = f"{sum(map(len, pieces))} rows in all steps, of {len(order_N)} tokens"
            else:
                self._take(ModuleOutput(name, module_type, token_NF, token_NF))
        self._steps.clear()

    def hook(self, name: str, module_type: str, _module: nn.Module | None, _inputs: Any, output: Any) -> None:
        """The forward hook of a module: hands over what it gave."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        called = name_of_call(name, call)
        if isinstance(output, Tensor):
            self._hand_over(called, module_type, output)
            return
        for index, tensor in enumerate(tensors_of(output)):
            if index and is_second_map(tensor, self._begun):  # eager attention returns it, the other backends cannot
                continue
            self._hand_over(name_of_tensor(called, index), module_type, tensor)

    def register(self, name: str, module: nn.Module) -> list[Any]:
        """Hooks one module, but not the model itself: its output is what the caller gets. Gives the handles."""
        # a partial: of a closure, each name that it remembers would be an object for Python's collector to look through
        hook = functools.partial(self._flat, name, type(module).__name__, name in self._steady)
        return [_Handle(module, self._id, hook)] if name else []

    def _flat(self, name: str, module_type: str, is_steady: bool, module: nn.Module, args: Any, output: Any) -> None:
        """`hook` in one function, for a tensor that a module gives in its first call; all else goes through `hook`.

        Runs thousands of times a second, and on a GPU the host is the limit.
        """
        calls = self._calls
        if type(output) is Tensor and name not in calls and not self._places and output.is_floating_point():
            tensor_NF = self._rows_of(output)
            if tensor_NF is not None:
                calls[name] = 1
                if is_steady and self._index_N is not None:  # weak, so that memory goes when it would have gone
                    self._picked = weakref.ref(output), weakref.ref(tensor_NF)
                self._take(ModuleOutput(name, module_type, tensor_NF, output))
                return
        self.hook(name, module_type, module, args, output)

    @property
    def _begun(self) -> Tokens:
        assert self._tokens is not None, "begin(tokens) comes before the model's forward"
        return self._tokens

    def _hand_over(self, name: str, module_type: str, tensor: Tensor) -> None:
        tensor_NF = self._rows_of(tensor) if tensor.is_floating_point() else None
        if tensor_NF is None:
            self.unaligned[name] = f"{tensor.dtype} of shape {tuple(tensor.shape)} has no token dimension"
        elif self._places:
            self._take_step(ModuleOutput(name, module_type, tensor_NF, tensor))
        else:
            self._take(ModuleOutput(name, module_type, tensor_NF, tensor))

    def _take_step(self, output: ModuleOutput) -> None:
        self._steps.setdefault(output.name, (output.module_type, []))[1].append(output.tensor_NF.clone())

    def _at_home(self, tensor: Tensor) -> Tensor:
        """The tensor where the call's tokens are: of a model that lies on several GPUs all is compared there."""
        return tensor if tensor.device == self._home else tensor.to(self._home)

    def _rows_of(self, tensor: Tensor) -> Tensor | None:
        """`rows`, in the fewest operations for what nearly all modules give."""
        shape, index_N = tensor.shape, self._index_N
        if len(shape) != 3 or shape[0] != self._B or shape[1] != self._T or tensor.get_device() != self._home_number:
            return self.rows(self._at_home(tensor), self._begun)
        # a view where it can be one: `flatten` finds that out in twice the time
        flat_NF = tensor.view(self._B * self._T, shape[2]) if tensor.is_contiguous() else tensor.flatten(0, 1)
        if index_N is None:
            return flat_NF
        picked_from, picked = self._picked
        if picked_from() is tensor and (rows_NF := picked()) is not None:
            return rows_NF
        return flat_NF.index_select(0, index_N)


def _nothing() -> None:
    return None


class _Handle:
    """A forward hook of a module, until it is removed. torch's own handle, which looks through the hooks of other kinds
    and can be pickled, takes ten times as long to make, once a module and cell."""

    __slots__ = ("_hooks", "_id")

    def __init__(self, module: nn.Module, number: int, hook: Callable[[nn.Module, Any, Any], None]) -> None:
        self._hooks, self._id = module._forward_hooks, number
        module._forward_hooks[number] = hook

    def remove(self) -> None:
        self._hooks.pop(self._id, None)


def name_of_call(name: str, call: int) -> str:
    """The name of a module's call, of those in one forward."""
    return f"{name}#{call}" if call else name


def name_of_tensor(name: str, index: int) -> str:
    """The name of one tensor of several."""
    return f"{name}[{index}]" if index else name


def in_order(pieces: list[Tensor], order_N: Tensor) -> Tensor | None:
    """The rows of all pieces in this order; None where there are not as many."""
    rows_NF = torch.cat(pieces) if len({piece.shape[1:] for piece in pieces}) == 1 else None
    return None if rows_NF is None or len(rows_NF) != len(order_N) else rows_NF.index_select(0, order_N)


def hookable(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module that takes hooks, by name; scripted ones refuse them."""
    return [pair for pair in model.named_modules() if not isinstance(pair[1], torch.jit.RecursiveScriptModule)]


@contextmanager
def capturing(model: nn.Module, running: Capture, names: Mapping[str, str] | None = None) -> Iterator[None]:
    """Hooks every module of `model`.

    Args:
        names: as in `Side`.
    """
    handles: list[Any] = []
    try:
        for name, module in hookable(model):
            handles += running.register((names or {}).get(name, name), module)
        yield
    finally:
        for handle in handles:
            handle.remove()


class CompiledCapture(Capture):
    """`Capture` of compiled code, which knows the hooks: what they are given becomes outputs of its graph.

    Everything is handed over when the call is over. All is copied before: the code's next run would overwrite it, and
    whoever takes an output may let another side run.
    """

    def __init__(self, take: Callable[[ModuleOutput], object]) -> None:
        super().__init__(take)
        self._given: list[tuple[str, str, Any]] = []

    def register(self, name: str, module: nn.Module) -> list[Any]:
        given, module_type = self._given, type(module).__name__

        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            given.append((name, module_type, output))

        return [module.register_forward_hook(hook)] if name else []

    def end(self) -> None:
        copies: list[tuple[str, str, Any]] = []
        while self._given:  # from the last on, and each original can die
            copies.append(_copied_output(*self._given.pop()))
        while copies:
            name, module_type, output = copies.pop()
            self.hook(name, module_type, None, None, output)


def _copied_output(name: str, module_type: str, output: Any) -> tuple[str, str, Any]:
    return name, module_type, tree_map(_copied, output)


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


@contextmanager
def capture(
    model: nn.Module,
    take: Callable[[ModuleOutput], object],
    *,
    steady: Container[str] = frozenset(),
    compiled: bool = False,
) -> Iterator[Capture]:
    """Hands over every module's output over real tokens, and nothing else. `steady` as in `Capture`."""
    running = CompiledCapture(take) if compiled else Capture(take, steady)
    with capturing(model, running):
        yield running


@contextmanager
def kept_outputs(module: nn.Module, *, copied: bool = False) -> Iterator[list[Tensor]]:
    """The first tensor that each call of `module` gives, as it gives it; the caller empties the list.

    Args:
        copied: of compiled code, whose next run would overwrite it.
    """
    outputs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        first = tensors_of(output)[0]
        outputs.append(first.clone() if copied else first)

    handle = module.register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()


def steady_in_call(model: nn.Module, tokens: Tokens, call: Callable[[], object]) -> frozenset[str]:
    """Names of the outputs that nothing writes to once their module has given them, as far as one call tells.

    Until the call ends, all outputs are kept, and copied: choose a small one. torch counts what its own operations
    write, even where no value changes, but not under `torch.inference_mode`, hence never under it here. Values tell of
    kernels that torch does not know.
    """
    seen: list[tuple[str, Tensor, int, Tensor]] = []

    def take(output: ModuleOutput) -> None:
        seen.append((output.name, output.original, _writes(output.original), output.original.clone()))

    # nobody looks at rows: without pads none have to be picked out
    whole = dataclasses.replace(tokens, flat_N=torch.arange(math.prod(tokens.shape), device=tokens.flat_N.device))
    # leaving inference mode turns gradients on
    with torch.inference_mode(False), torch.no_grad(), capture(model, take) as running:
        running.begin(whole)
        call()
        same = _same([tensor for _, tensor, _, _ in seen], [copy for *_, copy in seen])
    return frozenset(
        name
        for (name, tensor, writes, _), is_same in zip(seen, same, strict=True)
        if is_same and _writes(tensor) == writes
    )


def _same(tensors: Sequence[Tensor], copies: Sequence[Tensor]) -> list[bool]:
    """Whether each tensor equals its copy: first all of a kind at once, as one by one each takes three operations."""
    kinds: defaultdict[tuple[torch.device, torch.dtype], list[int]] = defaultdict(list)
    for number, tensor in enumerate(tensors):
        kinds[tensor.device, tensor.dtype].append(number)
    same = [True] * len(tensors)
    for numbers in kinds.values():
        now, before = (torch.cat([side[number].flatten() for number in numbers]) for side in (tensors, copies))
        if not (now == before).all():
            each = torch.stack([(tensors[number] == copies[number]).all() for number in numbers]).tolist()
            for number, is_same in zip(numbers, each, strict=True):
                same[number] = is_same
    return same


def _writes(tensor: Tensor) -> int:
    """How often torch has written to its memory; of a view of inference tensors it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors at the top level of a module's output: a tensor, a tuple or list, or transformers' ModelOutput."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [value for value in values if isinstance(value, Tensor)]
