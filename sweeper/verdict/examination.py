"""A side's modules on the arguments that the reference's had: how far each is off, and what rounding in it can cost."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sweeper.comparator.observation import window_bytes
from sweeper.comparator.side import Call, Outputs, Side
from sweeper.devices import out_of_memory
from sweeper.verdict.discrete_choices import Choices, same_choices
from sweeper.verdict.known_errors import KnownErrors
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_floor import Noise, distance, same_leaves
from sweeper.verdict.module_runs import (
    Given,
    Kept,
    Key,
    Over,
    Watch,
    autocast_in_force,
    coarsest,
    floats,
    merged,
    outputs_of,
    run_until_over,
)
from sweeper.verdict.thresholds import OWN_MULTIPLE

# A module's floor is at least this share of its output's machine epsilon: what lies below that many needs no nudges.
_LEAST_FLOOR = 0.25
# The same where outputs are nudged in the coarsest of the dtypes: uniform within one epsilon, whose share is 0.58.
_LEAST_NUDGED = 0.5


class Examination:
    """Runs a side once, and each of its modules on the reference's arguments beside it.

    Args:
        kept: what the reference's modules were given and gave, and gets their calls' rows from `calls`.
        noise: how floors are measured, of those modules that lie so far off that it matters; None: not at all.
        same_backend: as in `merged`.
        all_floors: measure every floor, however small the error.
        decisive: measure floors only as far as it takes to tell an error from one of `OWN_MULTIPLE` floors.
        errors: of the modules of another side, which its floors are compared with; None: its own.
        known: what needs no run, from earlier sides; what is found is added. None: nothing.
        postpone: names of modules whose floor may be told by another run of the side, where that is on these arguments.

    Attributes:
        found: the worst own error of each module over its calls, in order of execution.
        outputs: what each call of a module gave on the reference's arguments, where `keep` was asked for.
        postponed: the calls of `postpone` that are without a floor and need one.
        order: names of all modules that were watched, in the order in which they end.
        gave: what the side itself gave meanwhile, but for embeddings; nothing where its run ended before.
    """

    def __init__(
        self,
        kept: dict[Key, Kept],
        calls: tuple[Call, ...],
        noise: Noise | None,
        *,
        same_backend: bool,
        all_floors: bool = False,
        keep: bool = False,
        decisive: bool = False,
        errors: Mapping[str, OwnError] | None = None,
        known: KnownErrors | None = None,
        postpone: Collection[str] = (),
    ) -> None:
        self._known, self._postpone = known, postpone
        self._room = window_bytes(calls[0].forward.flat_N.device.type) if postpone else 0
        self._kept, self._calls, self._noise = kept, calls, noise
        self._same_backend, self._all_floors, self._keep = same_backend, all_floors, keep
        self._watch = Watch(self._before, self._after)
        self._decisive, self._errors = decisive, errors
        self._pending: dict[Key, OwnError] = {}
        self._running: dict[Key, _Running] = {}
        self._waiting: set[Key] = set()  # for whose end the run goes on; none: to its own
        self.found: dict[str, OwnError] = {}
        self.outputs: dict[Key, list[Tensor | None]] = {}
        self.postponed: dict[Key, Postponed] = {}
        self.order: dict[str, None] = {}
        self.gave: Outputs = {}

    def run(self, side: Side, names: set[str] | None = None, *, to_its_end: bool = True) -> Examination:
        """Examines the modules of these names; None: all. To be called once.

        Args:
            to_its_end: the side's run goes on behind the last of what is kept.
        """
        self._waiting = set() if to_its_end else set(self._kept)
        side = replace(side, pooling=None)  # the base model runs by itself, too: which hidden states are the side's?
        try:
            with self._watch.on(side, names):
                self.gave = run_until_over(side, self._watch) or {}
        finally:
            self._kept = {}  # an examination lives until garbage is collected, what is kept must not
        return self

    def _before(self, key: Key, module: nn.Module, args: Any, kwargs: Any) -> None:
        kept = self._kept.get(key)
        if kept is None or not kept.output:
            return
        arguments = functools.partial(merged, kept, args, kwargs, same_backend=self._same_backend)
        with self._watch.pause(), _unless_it_does_not_run():
            given = arguments()
            if given is None:
                return
            if self._known is not None:
                if (known := self._known.ask(key, module, given)) is not None:
                    self._pending[key] = known
                    return
                if self._known.is_references(module, given, kept):
                    self._examine(key, kept, module, kept.output, arguments)
                    return
            if not kept.choices and same_leaves(given, args, kwargs):
                self._running[key] = _Running(kept, module, given)  # it runs on these arguments anyway
                return
            with Choices() as choices:
                output = outputs_of(module, given)
            if same_choices(kept.choices, choices.chosen):
                self._examine(key, kept, module, output, arguments)

    def _after(self, key: Key, output: Any) -> None:
        self.order.setdefault(key[1])
        if (running := self._running.pop(key, None)) is not None:
            kept, module, given = running
            with self._watch.pause(), _unless_it_does_not_run():
                again = functools.partial(merged, kept, given.args, given.kwargs, same_backend=self._same_backend)
                # what else is given numbers is called with others where the whole side is nudged
                may_postpone = not key[1] or not given.floats
                self._examine(key, kept, module, floats(output), again, may_postpone=may_postpone)
        found = self._pending.pop(key, None)
        before = self.found.get(key[1])
        if found is not None and (before is None or found.worse_than(before)):
            self.found[found.name] = found
        if self._waiting:
            self._waiting.discard(key)
            if not self._waiting:
                raise Over

    def _examine(
        self,
        key: Key,
        kept: Kept,
        module: nn.Module,
        output: list[Tensor | None],
        arguments: Callable[[], Given | None],
        *,
        may_postpone: bool = False,
    ) -> None:
        call = self._calls[key[0]]
        own = distance(kept.output, output, call)
        if own is None:
            return
        if self._keep:
            self.outputs[key] = output
        dtype = coarsest(kept.output, output)
        found = OwnError(name=key[1], own=own, dtype=str(dtype).removeprefix("torch."))
        if self._noise is not None and (self._all_floors or own > self._near(dtype, output)):
            enough = self._errors[key[1]].own if self._errors is not None else own
            enough = enough / OWN_MULTIPLE if self._decisive else math.inf
            noise = self._noise
            if kept.autocast != autocast_in_force():  # a wrapper set it: the candidate's own rounding counts
                noise = replace(noise, products_only=False, inputs=True)
            if may_postpone and not noise.products_only and self._postpones(key, output):
                self.postponed[key] = Postponed(output, found)
            else:
                found = replace(found, floor=noise.floor(module, arguments, output, call, enough))
        self._pending[key] = found
        if self._known is not None and key not in self.postponed:
            self._known.tell(key, found)

    def _postpones(self, key: Key, output: list[Tensor | None]) -> bool:
        """Whether the floor of a call is postponed; what it gave is kept until then."""
        nbytes = sum(leaf.nbytes for leaf in output if leaf is not None)
        if key[1] not in self._postpone or nbytes > self._room:
            return False
        self._room -= nbytes
        return True

    def _near(self, dtype: torch.dtype, output: list[Tensor | None]) -> float:
        """The largest error of which no floor needs to be measured."""
        nudged = self._decisive and self._noise is not None and not self._noise.products_only
        in_it = all(leaf.dtype is dtype for leaf in output if leaf is not None)
        return OWN_MULTIPLE * (_LEAST_NUDGED if nudged and in_it else _LEAST_FLOOR) * torch.finfo(dtype).eps


class Postponed(NamedTuple):
    """What a call of a module gave, and how far it is off; its floor is not measured yet."""

    output: list[Tensor | None]
    found: OwnError


class _Running(NamedTuple):
    kept: Kept
    module: nn.Module
    given: Given


@contextlib.contextmanager
def _unless_it_does_not_run() -> Iterator[None]:
    """A module that does not run by itself is not judged by itself."""
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
