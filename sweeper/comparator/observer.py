"""Hooks that keep: each module's rows, call after call, and what a leaf module makes of another side's input."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from sweeper.comparator.hooks import Capture, ModuleOutput, in_order, lasting, name_of_call, name_of_tensor, tensors_of
from sweeper.comparator.kinds import Kinds
from sweeper.inputs.layout import Step, Tokens, to_rows
from sweeper.models.snapshot import left_as_found


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
            token_NF = in_order(came, order_N) if came else None
            pieces[start:] = [] if token_NF is None else [token_NF]
        return len(self.outputs) > starts[0]


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

    def _put_in_order(self, order_N: Tensor) -> None:
        for name, rows in list(self.modules.items()):
            if not rows.put_in_order(self._before.get(name, (0, 0, 0)), order_N):
                self.unaligned[name] = f"other rows in all steps than the {len(order_N)} tokens"
                del self.modules[name]
        self._given_rows.update(dict.fromkeys(self._stepped, len(order_N)))
        self._stepped.clear()

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
        called = name_of_call(name, self._calls.get(name, 0))
        given = _first_floating(args, kwargs) if next(module.children(), None) is None else None
        input_NF = self._rows_of(given) if given is not None else None
        self.hook(name, module_type, module, args, output)
        if given is None or input_NF is None or called not in self.seen:
            return
        rows = self.modules.get(called)
        self._count(called, input_NF, keeps=rows is not None and not rows.inputs)
        if rows is not None:
            rows.inputs.append(lasting(input_NF, given))
            for index, own in enumerate(self._own(called, module, args, kwargs, given)):
                own_NF, rows = self._rows_of(own), self.modules.get(name_of_tensor(called, index))
                if own_NF is not None and rows is not None:
                    rows.owns.append(lasting(own_NF, own))

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
            self.modules[name].outputs.append(output.lasting(()))

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
