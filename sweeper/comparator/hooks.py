"""Hooks on every module: each output is handed over in token order the moment it exists, and nothing is kept here."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sweeper.comparator.kinds import Kinds
from sweeper.inputs.layout import Step, Tokens, is_second_map, to_rows, to_tokens
from sweeper.models.snapshot import left_as_found


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
        if self.name in steady or self.tensor_NF.data_ptr() != self.original.data_ptr():
            return self.tensor_NF
        return self.tensor_NF.clone()


class Capture:
    """The hooks' side of one run. Tell it of each call of the model with `begin`, and with `end` when it is over.

    Args:
        take: gets every output of a module.

    Attributes:
        unaligned: outputs that have no token dimension, by name, with the shape.
    """

    rows = staticmethod(to_tokens)

    def __init__(self, take: Callable[[ModuleOutput], object]) -> None:
        self._take = take
        self._calls: dict[str, int] = {}
        self._tokens: Tokens | None = None
        self._no_pads: tuple[int, ...] | None = None  # B and T, where all of it are tokens
        self._places: list[Tensor] = []  # of the tokens of each step, in a call that is made in steps
        self._steps: dict[str, tuple[str, list[Tensor]]] = {}
        self.unaligned: dict[str, str] = {}

    def begin(self, tokens: Tokens) -> None:
        self._tokens = tokens
        self._calls.clear()
        if isinstance(tokens, Step):
            self._places.append(tokens.place_N)
        self._no_pads = tokens.shape if len(tokens.flat_N) == math.prod(tokens.shape) else None

    def end(self) -> None:
        """The call that was begun is over: hands over what came step by step, in the order of the call's tokens."""
        if not self._places:
            return
        order_N = torch.cat(self._places).argsort()
        for name, (module_type, pieces) in self._steps.items():
            token_NF = _in_order(pieces, order_N)
            if token_NF is None:
                self.unaligned[name] = f"{sum(map(len, pieces))} rows in all steps, of {len(order_N)} tokens"
            else:
                self._take(ModuleOutput(name, module_type, token_NF, token_NF))
        self._places, self._steps = [], {}

    def hook(self, name: str, module_type: str, _module: nn.Module | None, _inputs: Any, output: Any) -> None:
        """The forward hook of a module: hands over what it gave. Runs thousands of times a second; on a GPU the host is
        the limit."""
        call = self._calls.get(name, 0)
        self._calls[name] = call + 1
        called = _called(name, call) if call else name
        if isinstance(output, Tensor):
            self._hand_over(called, module_type, output)
            return
        for index, tensor in enumerate(tensors_of(output)):
            if not index:
                self._hand_over(called, module_type, tensor)
            elif not is_second_map(tensor, self._begun):  # eager attention returns it, the other backends cannot
                self._hand_over(_indexed(called, index), module_type, tensor)

    def register(self, name: str, module: nn.Module) -> list[Any]:
        """Hooks one module, but not the model itself: its output is what the caller gets. Gives the handles."""
        return [module.register_forward_hook(functools.partial(self.hook, name, type(module).__name__))] if name else []

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
        home = self._begun.flat_N.device
        return tensor if tensor.device == home else tensor.to(home)

    def _rows_of(self, tensor: Tensor) -> Tensor | None:
        """`rows`, in one operation where no row is left out."""
        tensor = self._at_home(tensor)
        if tensor.dim() == 3 and tensor.shape[:2] == self._no_pads:
            return tensor.flatten(0, 1)
        return self.rows(tensor, self._begun)


@dataclass
class ModuleRows:
    """Rows of one output of a module, call after call, copied.

    Attributes:
        outputs: what came out.
        inputs: the first floating-point argument of a leaf module; empty for others and for a second output.
        owns: what a leaf module makes of the reference's input; empty where that was not asked for or cannot be had.
    """

    module_type: str
    outputs: list[Tensor] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    owns: list[Tensor] = field(default_factory=list)

    def lengths(self) -> tuple[int, ...]:
        """How many pieces there are of each."""
        return len(self.outputs), len(self.inputs), len(self.owns)

    def put_in_order(self, starts: tuple[int, ...], order_N: Tensor) -> bool:
        """Makes one piece of those that came from there on, in this order; says whether the outputs have such rows."""
        for pieces, start in zip((self.outputs, self.inputs, self.owns), starts, strict=True):
            came = pieces[start:]
            token_NF = _in_order(came, order_N) if came else None
            pieces[start:] = [] if token_NF is None else [token_NF]
        return len(self.outputs) > starts[0]


def _in_order(pieces: list[Tensor], order_N: Tensor) -> Tensor | None:
    """The rows of all pieces in this order; None where there are not as many."""
    rows_NF = torch.cat(pieces) if len({piece.shape[1:] for piece in pieces}) == 1 else None
    return None if rows_NF is None or len(rows_NF) != len(order_N) else rows_NF.index_select(0, order_N)


class Observer(Capture):
    """Keeps outputs and leaf modules' inputs; what has no token dimension by the rows of the batch (`to_rows`).

    Args:
        given: the reference's input rows of all calls, by name: on these each leaf module is run too.
        several: calls have several kinds of tokens, to be told apart (`Kinds`).
        only: names of the outputs that are kept; None: all.
        most_bytes: that may be kept; an output that comes when so many are is left out, and all behind it.
        tokens: of all calls.

    Attributes:
        modules: what is kept, by name, in order of execution.
        seen: the bytes of every output with its input, kept or not, in order of execution.
    """

    rows = staticmethod(to_rows)

    def __init__(
        self,
        given: Mapping[str, Tensor],
        *,
        several: bool = False,
        only: Container[str] | None = None,
        most_bytes: float = math.inf,
        tokens: int = 1,
    ) -> None:
        super().__init__(self._keep)
        self._several = several
        self.modules: dict[str, ModuleRows] = {}
        self.seen: dict[str, int] = {}
        self._only = only
        self._room = most_bytes
        self._all_tokens = tokens
        self._kinds = Kinds()
        self._given = given
        self._given_rows: Counter[str] = Counter()  # that earlier calls took
        self._stepped: set[str] = set()  # that steps of this call take from
        self._before: dict[str, tuple[int, ...]] = {}  # pieces of each module's rows before this call's steps
        self._rerunning = False

    def begin(self, tokens: Tokens) -> None:
        if isinstance(tokens, Step) and not self._places:
            self._before = {name: rows.lengths() for name, rows in self.modules.items()}
        super().begin(tokens)
        self._kinds.begin(tokens)

    def end(self) -> None:
        """The call that was begun is over: what came step by step is put in the order of the call's tokens."""
        if not self._places:
            return
        order_N = torch.cat(self._places).argsort()
        for name, rows in list(self.modules.items()):
            if not rows.put_in_order(self._before.get(name, (0, 0, 0)), order_N):
                self.unaligned[name] = f"other rows in all steps than the {len(order_N)} tokens"
                del self.modules[name]
        self._given_rows.update(dict.fromkeys(self._stepped, len(order_N)))
        self._stepped.clear()
        self._places = []

    def _take_step(self, output: ModuleOutput) -> None:
        self._keep(output)

    def register(self, name: str, module: nn.Module) -> list[Any]:
        hook = functools.partial(self.hook_with_inputs, name, type(module).__name__)
        handles = [module.register_forward_hook(hook, with_kwargs=True)] if name else []
        if self._several:
            before = functools.partial(self._kinds.enter, name)
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(self._kinds.leave, always_call=True))
        return handles

    def hook_with_inputs(
        self, name: str, module_type: str, module: nn.Module, args: Any, kwargs: Any, output: Any
    ) -> None:
        """`hook`, which sees the arguments as well."""
        if self._rerunning:
            return
        called = _called(name, self._calls.get(name, 0))
        given = _first_floating(args, kwargs) if next(module.children(), None) is None else None
        input_NF = self._rows_of(given) if given is not None else None
        self.hook(name, module_type, module, args, output)
        if given is None or input_NF is None or called not in self.seen:
            return
        rows = self.modules.get(called)
        self._count(called, input_NF, keeps=rows is not None and not rows.inputs)
        if rows is not None:
            rows.inputs.append(input_NF.clone())
            for index, own in enumerate(self._own(called, module, args, kwargs, given)):
                own_NF, rows = self._rows_of(own), self.modules.get(_indexed(called, index))
                if own_NF is not None and rows is not None:
                    rows.owns.append(own_NF.clone())

    def _rows_of(self, tensor: Tensor) -> Tensor | None:
        if self._kinds.several:
            return self.rows(self._at_home(tensor), self._kinds.of(tensor))
        return super()._rows_of(tensor)

    def _keep(self, output: ModuleOutput) -> None:
        name = output.name
        begins = name not in self.seen and self._room > 0 and (self._only is None or name in self._only)
        if begins:
            self.modules[name] = ModuleRows(output.module_type)
        self._count(name, output.tensor_NF, keeps=begins)
        if name in self.modules:
            self.modules[name].outputs.append(output.tensor_NF.clone())

    def _count(self, name: str, rows_NF: Tensor, *, keeps: bool) -> None:
        """Counts these rows; where they are the first that are kept, also the room that those of all calls need."""
        self.seen[name] = self.seen.get(name, 0) + rows_NF.nbytes
        if keeps:
            self._room -= rows_NF.nbytes * self._all_tokens / max(1, len(self._begun.flat_N))

    def _own(self, name: str, module: nn.Module, args: Any, kwargs: Any, given: Tensor) -> list[Tensor]:
        """The module's outputs on the reference's input, in the layout of its own; none where it cannot be had."""
        if name not in self._given:
            return []
        tokens = self._kinds.of(given) if self._kinds.several else self._begun
        start, N = self._given_rows[name], len(tokens.flat_N)
        if isinstance(tokens, Step):
            self._stepped.add(name)
            reference_NF = self._given[name][start:][tokens.place_N]
        else:
            self._given_rows[name] += N
            reference_NF = self._given[name][start : start + N]
        placed = _placed(reference_NF, given, tokens)
        if placed is None:
            return []

        def swap(value: Any) -> Any:
            return placed if value is given else value

        self._rerunning = True
        try:
            with left_as_found(module):  # what runs on behind it knows nothing of this run
                return tensors_of(module(*map(swap, args), **{key: swap(value) for key, value in kwargs.items()}))
        finally:
            self._rerunning = False


def _called(name: str, call: int) -> str:
    """The name of a module's call, of those in one forward."""
    return f"{name}#{call}" if call else name


def _indexed(name: str, index: int) -> str:
    """The name of one tensor of several."""
    return f"{name}[{index}]" if index else name


def _first_floating(args: Any, kwargs: Any) -> Tensor | None:
    values = [*args, *kwargs.values()]
    return next((value for value in values if isinstance(value, Tensor) and value.is_floating_point()), None)


def _placed(reference_NF: Tensor, given: Tensor, tokens: Tokens) -> Tensor | None:
    """`given` with its real tokens replaced by the reference's; its pads stay. None: it has no token dimension."""
    B, T = tokens.shape
    if given.shape[:2] == (B, T):
        placed = given.flatten(0, 1).clone()
    elif given.shape[0] == B * T:
        placed = given.clone()
    else:
        return None
    if len(reference_NF) != len(tokens.flat_N) or reference_NF[:1].numel() != placed[:1].numel():
        return None
    real = reference_NF.to(given).reshape(-1, *placed.shape[1:])
    return placed.index_copy(0, tokens.flat_N.to(placed.device), real).reshape(given.shape)


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
def capture(model: nn.Module, take: Callable[[ModuleOutput], object], *, compiled: bool = False) -> Iterator[Capture]:
    """Hands over every module's output over real tokens, and nothing else."""
    running = CompiledCapture(take) if compiled else Capture(take)
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

    # leaving inference mode turns gradients on
    with torch.inference_mode(False), torch.no_grad(), capture(model, take) as running:
        running.begin(tokens)
        call()
        # whether it is the same is read once for all
        home = tokens.flat_N.device
        same = torch.stack([(tensor == copy).all().to(home) for _, tensor, _, copy in seen]).tolist() if seen else []
    return frozenset(
        name
        for (name, tensor, writes, _), is_same in zip(seen, same, strict=True)
        if is_same and _writes(tensor) == writes
    )


def _writes(tensor: Tensor) -> int:
    """How often torch has written to its memory; of a view of inference tensors it does not count."""
    return 0 if tensor.is_inference() else tensor._version


def tensors_of(output: Any) -> list[Tensor]:
    """The tensors at the top level of a module's output: a tensor, a tuple or list, or transformers' ModelOutput."""
    if isinstance(output, Tensor):
        return [output]
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    return [value for value in values if isinstance(value, Tensor)]
