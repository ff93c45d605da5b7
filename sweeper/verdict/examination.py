"""A side's modules on the arguments that the reference's had: how far each is off, and what rounding in it can cost."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.comparator.outputs import same_bits
from sweeper.comparator.side import Call, Outputs, Side
from sweeper.devices import out_of_memory
from sweeper.inputs.layout import is_attention_map, to_rows
from sweeper.verdict.discrete_choices import Choices, same_choices
from sweeper.verdict.draws import Draws
from sweeper.verdict.first_divergence import rel_l2
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_runs import (
    Given,
    Kept,
    Key,
    Over,
    Watch,
    autocast_in_force,
    floats,
    merged,
    outputs_of,
    run_until_over,
)
from sweeper.verdict.monte_carlo import OperationNoise, multiplied
from sweeper.verdict.thresholds import OWN_MULTIPLE

_SEEDS = 3
_APART = 2**16  # from the seeds of operations, so that what goes in and comes out is nudged by other numbers
# A module's floor is at least this share of its output's machine epsilon: what lies below that many needs no nudges.
_LEAST_FLOOR = 0.25
# The same where outputs are nudged in the coarsest of the dtypes: uniform within one epsilon, whose share is 0.58.
_LEAST_NUDGED = 0.5


@dataclass(frozen=True)
class Noise:
    """How a module's floor is measured.

    Attributes:
        state_eps, products_only: as in `OperationNoise`. With products only, inputs and outputs are not nudged either.
        inputs: also nudge what the module is given: it was rounded, where the sides differ in dtype.
    """

    state_eps: float = 0.0
    products_only: bool = False
    inputs: bool = False

    def floor(
        self,
        module: nn.Module,
        arguments: Callable[[], Given | None],
        output: list[Tensor | None],
        call: Call,
        enough: float = math.inf,
    ) -> float:
        """The root mean square of what nudges of inputs, operations and outputs make of the output.

        Args:
            enough: no seed is run behind those that are sure to bring it there. A few nudges, of products with
                activations, come first: where they do, all others would only add to them.
        """

        def sample(seed: int, *, few: bool = False) -> float:
            given = arguments()
            assert given is not None, "the module ran on the same arguments before"
            again = self._nudged(module, given, seed, few=few)
            return distance(output, again, call) or 0.0

        at_least = enough * math.sqrt(_SEEDS)
        if not self.products_only and enough < math.inf and (first := sample(0, few=True)) >= at_least:
            return first
        samples: list[float] = []
        for seed in range(_SEEDS):
            if samples and math.sqrt(sum(sample**2 for sample in samples) / _SEEDS) >= enough:
                break
            samples.append(sample(seed))
        return math.sqrt(sum(sample**2 for sample in samples) / len(samples))

    def _nudged(self, module: nn.Module, given: Given, seed: int, *, few: bool) -> list[Tensor | None]:
        """The module's output with everything nudged, or of its operations only a few."""
        draws = Draws(seed + _APART)
        for tensor in given.floats if self.inputs else ():
            _nudge_(tensor, draws)
        noise = OperationNoise(
            seed,
            given.floats,
            module,
            state_eps=0.0 if few else self.state_eps,
            products_only=self.products_only,
            few=few,
        )
        again = outputs_of(module, given, noise)
        for result in again:
            if result is not None and not self.products_only:
                _nudge_(result, draws)
        return again


def _nudge_(tensor: Tensor, draws: Draws) -> None:
    tensor.copy_(multiplied(tensor, draws, torch.finfo(tensor.dtype).eps))


class Examination:
    """Runs a side once, and each of its modules on the reference's arguments beside it.

    Args:
        kept: what the reference's modules were given and gave, and gets their calls' rows from `calls`.
        noise: how floors are measured, of those modules that lie so far off that it matters; None: not at all.
        same_backend: as in `merged`.
        all_floors: measure every floor, however small the error.
        decisive: measure floors only as far as it takes to tell an error from one of `OWN_MULTIPLE` floors.
        errors: of the modules of another side, which its floors are compared with; None: its own.

    Attributes:
        found: the worst own error of each module over its calls, in order of execution.
        outputs: what each call of a module gave on the reference's arguments, where `keep` was asked for.
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
    ) -> None:
        self._kept, self._calls, self._noise = kept, calls, noise
        self._same_backend, self._all_floors, self._keep = same_backend, all_floors, keep
        self._watch = Watch(self._before, self._after)
        self._decisive, self._errors = decisive, errors
        self._pending: dict[Key, OwnError] = {}
        self._running: dict[Key, _Running] = {}
        self._waiting: set[Key] = set()  # for whose end the run goes on; none: to its own
        self.found: dict[str, OwnError] = {}
        self.outputs: dict[Key, list[Tensor | None]] = {}
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
            if not kept.choices and _same_leaves(given, args, kwargs):
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
                self._examine(key, kept, module, floats(output), again)
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
    ) -> None:
        call = self._calls[key[0]]
        own = distance(kept.output, output, call)
        if own is None:
            return
        if self._keep:
            self.outputs[key] = output
        ours = [leaf.dtype for leaf in output if leaf is not None]
        dtype = max([leaf.dtype for leaf in kept.output if leaf is not None] + ours, key=_eps)
        found = OwnError(name=key[1], own=own, dtype=str(dtype).removeprefix("torch."))
        if self._noise is not None and (self._all_floors or own > self._near(dtype, ours)):
            enough = self._errors[key[1]].own if self._errors is not None else own
            enough = enough / OWN_MULTIPLE if self._decisive else math.inf
            noise = self._noise
            if kept.autocast != autocast_in_force():  # a wrapper set it: the candidate's own rounding counts
                noise = replace(noise, products_only=False, inputs=True)
            found = replace(found, floor=noise.floor(module, arguments, output, call, enough))
        self._pending[key] = found

    def _near(self, dtype: torch.dtype, ours: list[torch.dtype]) -> float:
        """The largest error of which no floor needs to be measured."""
        nudged = self._decisive and self._noise is not None and not self._noise.products_only
        least = _LEAST_NUDGED if nudged and all(own is dtype for own in ours) else _LEAST_FLOOR
        return OWN_MULTIPLE * least * _eps(dtype)


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


def _same_leaves(given: Given, args: Any, kwargs: Any) -> bool:
    """Whether the arguments are, bit for bit, those that the module is called with; only tensors and plain values."""
    pairs = zip(tree_leaves((given.args, given.kwargs)), tree_leaves((args, kwargs)), strict=True)
    return all(_same_leaf(one, other) for one, other in pairs)


def _same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and same_bits(one, other)
    return isinstance(one, (bool, int, float, str, type(None))) and type(one) is type(other) and one == other


def _eps(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps


def distance(reference: Sequence[Tensor | None], candidate: Sequence[Tensor | None], call: Call) -> float | None:
    """The largest rel_l2 of the tensors that two outputs have in the same place, over real tokens where they have some.

    Attention weights beside an output are left out: a kernel gives none, and pads lie in two of their dimensions. None:
    nothing can be compared.
    """
    pairs = [
        (one, other)
        for one, other in zip(reference, candidate, strict=False)
        if one is not None and other is not None and one.shape == other.shape
    ]
    pairs = [pair for pair in pairs if not is_attention_map(pair[0], call.forward)] or pairs
    values = [rel_l2(_rows(one, call), _rows(other.to(one.device), call)) for one, other in pairs]
    return None if not values or any(map(math.isnan, values)) else max(values)


def _rows(tensor: Tensor, call: Call) -> Tensor:
    found = to_rows(tensor, call.forward)
    return tensor if found is None else found
