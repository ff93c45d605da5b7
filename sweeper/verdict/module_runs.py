"""Single modules run on arguments that another run's had: what is kept of a run, and how a module is given it."""

from __future__ import annotations

import contextlib
import copy
import math
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from sweeper.comparator.hooks import hookable
from sweeper.comparator.side import Outputs, Side, run
from sweeper.devices import out_of_memory
from sweeper.inputs.layout import Step, Tokens
from sweeper.models.snapshot import Reach, left_as_found, reachable
from sweeper.verdict.discrete_choices import Choices

Key = tuple[int, str, int]  # the call of the model, the module's name (empty: the model itself), and which call of it


class Given(NamedTuple):
    """Arguments for one call of a module, its own to write to; and those tensors among them that are floating-point."""

    args: Any
    kwargs: Any
    floats: list[Tensor]


@dataclass
class Kept:
    """One call of a module of the reference: its arguments, its output, what was chosen, and under what autocast."""

    args: Any
    kwargs: Any
    autocast: tuple[torch.dtype | None, ...]
    output: list[Tensor | None] = field(default_factory=list)
    choices: list[Tensor] = field(default_factory=list)


def autocast_in_force() -> tuple[torch.dtype | None, ...]:
    """The dtype that autocast gives on the CPU and on a GPU; None where it is off."""
    kinds = ("cpu", "cuda")
    return tuple(torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None for kind in kinds)


class Over(Exception):
    """All that was asked for has run: what the model does behind it is for nothing.

    An `Exception`, behind which torch calls the hooks that let go of streamed weights. A model may catch it and go on.
    """


class Watch:
    """Hooks around every call of every module of a run, the model's own included."""

    def __init__(self, before: Callable[[Key, nn.Module, Any, Any], None], after: Callable[[Key, Any], None]) -> None:
        self._before, self._after = before, after
        self._call = -1
        self._counts: Counter[str] = Counter()
        self._running: list[Key] = []
        self.paused = False

    def begin(self, tokens: Tokens) -> None:
        if not isinstance(tokens, Step) or not tokens.start:
            self._call += 1
            self._counts.clear()

    def end(self) -> None:
        """The call that was begun is over."""

    @contextlib.contextmanager
    def on(self, side: Side, names: Collection[str] | None = None) -> Iterator[None]:
        """Hooks all modules, or those of these names, by the names that both sides share; the model itself has none."""
        handles = []
        try:
            for path, module in hookable(side.model):
                name = side.names.get(path, path) if path else ""
                inside_wrapper = path and not name
                if inside_wrapper or (names is not None and name not in names):
                    continue
                # the arguments before the module's own hooks change them, the output after they did
                enter, leave = self._enter(name), self._leave(name)
                handles.append(module.register_forward_pre_hook(enter, prepend=True, with_kwargs=True))
                handles.append(module.register_forward_hook(leave, with_kwargs=False))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Runs of single modules in between are not watched."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if not self.paused:
                key = (self._call, name, self._counts[name])
                self._counts[name] += 1
                self._running.append(key)
                self._before(key, module, args, kwargs)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            if self.paused or all(key[1] != name for key in self._running):
                return
            while (key := self._running.pop())[1] != name:
                pass  # it raised, and the model went on
            self._after(key, output)

        return hook


@dataclass
class Captured:
    """What modules of a run were given and gave.

    Attributes:
        kept: of as many modules as were to be kept.
        left: names of the others, in order of execution, and how often each was called.
        chooses: something in the run chose by comparing numbers (`Choices`).
    """

    kept: dict[Key, Kept]
    left: Mapping[str, int] = field(default_factory=dict)
    chooses: bool = True


def capture(
    side: Side,
    names: Collection[str] | None = None,
    *,
    most_bytes: float = math.inf,
    calls: Mapping[str, int] | None = None,
) -> Captured:
    """Runs a side and keeps, copied, what its modules are given and give.

    Args:
        names: of the modules; None: all.
        most_bytes: that may be kept; no further module is where so many are.
        calls: the modules and how often each is called, where that is known (`Captured.left`), in place of `names`. The
            run then ends behind the last call of those that are kept.
    """
    tokens = [len(call.forward.flat_N) for call in side.calls]
    of_first = max(1, tokens[0]) / max(1, sum(tokens))  # the first call tells what there is room for
    capturing = _Capturing(most_bytes * of_first, calls or {})
    watch = Watch(capturing.before, capturing.after)
    with watch.on(side, calls or names), capturing.choices:
        run_until_over(side, watch)
    return capturing.captured()


def run_until_over(side: Side, watch: Watch) -> Outputs | None:
    """The outputs of a run; None where a hook ended it."""
    try:
        return run(side, watch)
    except Over:
        return None


class _Capturing:
    """What `capture` keeps; its arguments."""

    def __init__(self, most_bytes: float, calls: Mapping[str, int]) -> None:
        self._most_bytes, self._calls = most_bytes, calls
        self._kept: dict[Key, Kept] = {}
        self._copies = _Copies()
        self._starts: dict[Key, int] = {}
        self._taken: dict[str, bool] = {}
        self._counts: Counter[str] = Counter()
        self._waiting = 0  # for so many calls of what is taken
        self._over = False
        self.choices = Choices()

    @property
    def _full(self) -> bool:
        return self._copies.nbytes >= self._most_bytes

    def before(self, key: Key, _module: nn.Module, args: Any, kwargs: Any) -> None:
        name = key[1]
        self._counts[name] += 1
        if name not in self._taken:
            self._taken[name] = not self._taken or not self._full
            self._waiting += self._calls.get(name, 0) if self._taken[name] else 0
        if self._taken[name]:
            self._kept[key] = Kept(self._copies.of(args), self._copies.of(kwargs), autocast_in_force())
            self._starts[key] = len(self.choices.chosen)

    def after(self, key: Key, output: Any) -> None:
        if key not in self._kept:
            return
        self._kept[key].output = floats(output, self._copies.of_tensor)  # often what the next module is given
        self._kept[key].choices = self.choices.chosen[self._starts[key] :]
        self._waiting -= 1
        if self._calls and not self._waiting and (self._full or self._taken.keys() == self._calls.keys()):
            self._over = True
            raise Over

    def captured(self) -> Captured:
        """All of it. Where the run did not go on to its end, only `calls` tell what comes behind."""
        seen = self._calls if self._over else self._counts
        left = {name: seen[name] for name in seen if not self._taken.get(name, False)}
        return Captured(self._kept, left, chooses=bool(self.choices.chosen))


class _Copies:
    """Copies of arguments and results. One tensor that several modules are given or give, by itself or in a cache, is
    copied once, as long as nobody wrote to it.

    Attributes:
        nbytes: of the copies.
    """

    def __init__(self) -> None:
        self._copies: dict[tuple[int, int], tuple[weakref.ref[Tensor], Tensor]] = {}
        self.nbytes = 0

    def of(self, value: Any) -> Any:
        return tree_map(self._of_leaf, value)

    def _of_leaf(self, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return self.of_tensor(leaf)
        return copied(leaf, self.of_tensor)

    def of_tensor(self, tensor: Tensor) -> Tensor:
        key = id(tensor), 0 if tensor.is_inference() else tensor._version
        known = self._copies.get(key)
        if known is None or known[0]() is not tensor:  # its id was another's, which is gone
            known = self._copies[key] = weakref.ref(tensor), tensor.clone()
            self.nbytes += tensor.nbytes
        return known[1]


def copied(leaf: Any, of_tensor: Callable[[Tensor], Tensor] | None = None) -> Any:
    """A copy of anything that a module is given, so that what it writes there (a cache) is the run's own.

    Args:
        of_tensor: makes the copies of the tensors in it; None: each is cloned.
    """
    if isinstance(leaf, Tensor):
        return leaf.clone()
    if isinstance(leaf, nn.Module):
        return leaf
    try:
        copies: dict[int, Any] = {}
        if of_tensor is not None:
            tensors = [value for value, reach in reachable(leaf) if reach is Reach.TENSOR]
            copies = {id(tensor): of_tensor(tensor) for tensor in tensors}
        return copy.deepcopy(leaf, copies)
    except Exception as error:  # whatever cannot be copied is passed on
        if out_of_memory(error):
            raise
        return leaf


def outputs_of(
    module: nn.Module, given: Given, around: AbstractContextManager[Any] | None = None
) -> list[Tensor | None]:
    """What a module gives by itself; what it leaves behind is undone, so that what runs on knows nothing of it.

    Args:
        around: a context for the module's run alone.
    """
    with left_as_found(module), around if around is not None else contextlib.nullcontext():
        return floats(module(*given.args, **given.kwargs))


def floats(output: Any, copy_of: Callable[[Tensor], Tensor] = Tensor.clone) -> list[Tensor | None]:
    """Copies of the floating-point tensors of an output, each in its place; None where something else lies."""
    return [copy_of(leaf) if _is_float(leaf) else None for leaf in tree_leaves(_plain(output))]


def coarsest(*outputs: list[Tensor | None]) -> torch.dtype:
    """The coarsest dtype among the tensors of outputs."""
    dtypes = [leaf.dtype for output in outputs for leaf in output if leaf is not None]
    return max(dtypes, key=lambda dtype: torch.finfo(dtype).eps)


def _plain(output: Any) -> Any:
    """A transformers output is a dictionary that torch may not know as one."""
    return dict(output) if isinstance(output, Mapping) else output


def merged(kept: Kept, args: Any, kwargs: Any, *, same_backend: bool) -> Given | None:
    """The reference's arguments in the candidate's dtypes.

    Another attention backend is given another mask: then all but pairs of floating-point tensors stays the
    candidate's. None where the two were called in different ways, or where another backend has another layout as well.
    """
    ours, layout = tree_flatten((kept.args, kept.kwargs))
    theirs, spec = tree_flatten((args, kwargs))
    if layout != spec:
        return None
    leaves = []
    for one, other in zip(ours, theirs, strict=True):
        numbers = _is_float(one) and _is_float(other)
        if numbers and not same_backend and one.shape != other.shape:
            return None
        if numbers:
            leaves.append(one.to(other.device, other.dtype, copy=True))
        else:
            leaves.append(copied(one if same_backend else other))
    new_args, new_kwargs = tree_unflatten(leaves, spec)
    return Given(new_args, new_kwargs, [leaf for leaf in leaves if _is_float(leaf)])


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()
