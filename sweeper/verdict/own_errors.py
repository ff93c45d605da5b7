"""What every module does by itself: its output on the reference's own arguments, against what rounding in it can cost.

The outputs of a model hide what one module does, and the float64 replay hides code that follows the dtype of what it is
given. So each module of the candidate, composite ones and the model itself too, is run on the arguments that the
reference's had, natively. What lies many of its own floors away from the reference's output, and is gone in float64, is
no rounding, whatever the outputs say.
"""

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

from sweeper.comparator.observation import window_bytes
from sweeper.comparator.outputs import same_bits
from sweeper.comparator.side import Call, Side, run
from sweeper.devices import out_of_memory
from sweeper.inputs.layout import is_attention_map, to_rows
from sweeper.verdict.causes.arguments import arguments_undone
from sweeper.verdict.discrete_choices import Choices, same_choices
from sweeper.verdict.first_divergence import rel_l2
from sweeper.verdict.float64_replay import attention, attention_implementation, replayed
from sweeper.verdict.measured import OwnError
from sweeper.verdict.module_runs import (
    Captured,
    Given,
    Kept,
    Key,
    Watch,
    autocast_in_force,
    capture,
    floats,
    merged,
    outputs_of,
)
from sweeper.verdict.monte_carlo import OperationNoise, multiplied
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.state_changes import Provenance
from sweeper.verdict.thresholds import KERNEL_MULTIPLE, OWN_MULTIPLE

_SEEDS = 3
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
            enough: no seed is run behind those that are sure to bring it there.
        """
        samples: list[float] = []
        for seed in range(_SEEDS):
            if samples and math.sqrt(sum(sample**2 for sample in samples) / _SEEDS) >= enough:
                break
            given = arguments()
            assert given is not None, "the module ran on the same arguments before"
            generator = torch.Generator().manual_seed(seed)
            for tensor in given.floats if self.inputs else ():
                _nudge_(tensor, generator)
            noise = OperationNoise(
                seed, given.floats, module, state_eps=self.state_eps, products_only=self.products_only
            )
            again = outputs_of(module, given, noise)
            for result in again:
                if result is not None and not self.products_only:
                    _nudge_(result, generator)
            samples.append(distance(output, again, call) or 0.0)
        return math.sqrt(sum(sample**2 for sample in samples) / len(samples))


def _nudge_(tensor: Tensor, generator: torch.Generator) -> None:
    drawn = torch.rand(tensor.shape, generator=generator).to(tensor.device)
    tensor.copy_(multiplied(tensor, torch.finfo(tensor.dtype).eps * (drawn * 2 - 1)))


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
        self.found: dict[str, OwnError] = {}
        self.outputs: dict[Key, list[Tensor | None]] = {}
        self.order: dict[str, None] = {}

    def run(self, side: Side, names: set[str] | None = None) -> Examination:
        """Examines the modules of these names; None: all."""
        with self._watch.on(side, names):
            run(side, self._watch)
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
        """Up to which error no floor needs to be measured."""
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


class Natively:
    """Finds what a module does natively and not in float64, on the reference's own arguments.

    Args:
        names: of the modules that are asked for; None: all.
        evidence: of the reference; None: none yet.
        full: measure all floors to the end; else only as far as something depends on them.
    """

    def __init__(
        self,
        reference: Side,
        candidate: Side,
        found: Provenance,
        names: set[str] | None = None,
        *,
        evidence: ReferenceEvidence | None = None,
        full: bool = True,
    ) -> None:
        self._reference, self._candidate, self._found, self._full = reference, candidate, found, full
        backends = [attention_implementation(side.model) for side in (reference, candidate)]
        self._same_backend = backends[0] == backends[1]
        self._kernels = set(backends) - {None, "eager"}
        evidence, asked = evidence or ReferenceEvidence(), None if names is None else frozenset(names)
        self._first = evidence.once(reference, ("kept", asked), lambda: self._captured(reference, names))

    def _captured(self, side: Side, names: set[str] | None) -> Captured:
        device = side.calls[0].forward.flat_N.device.type
        return capture(side, names, most_bytes=window_bytes(device))

    def _parts(self, names: set[str] | None) -> Iterator[dict[Key, Kept]]:
        """What the reference's modules of these names were given and gave, as many at a time as are kept at once."""
        kept, left = self._first.kept, set(self._first.left)
        if names is not None:
            kept, left = {key: call for key, call in kept.items() if key[1] in names}, left & names
        if kept or not left:
            yield kept
        while left:
            del kept
            captured = self._captured(self._reference, left)
            kept, left = captured.kept, set(captured.left)
            yield kept

    def examine(self, names: set[str] | None = None) -> dict[str, OwnError]:
        """Own error and floor of each module, the floor where it matters; the model itself has the empty name."""
        same, eps = self._same_conditions(), self._state_eps()
        noise = Noise(state_eps=eps, products_only=same, inputs=not same)
        first = self._run(self._candidate, noise, names)
        far = {name for name, one in first.items() if one.floors > OWN_MULTIPLE}
        if not far:
            return first
        floors = self._run(self._reference, Noise(inputs=not same), far, all_floors=True, errors=first)
        for name in far & floors.keys():
            first[name] = replace(first[name], floor=max(first[name].floor, floors[name].floor))
        return first

    def operations_floor(self) -> float:
        """The floor of the model itself, of the noisier side; NaN where it runs on no one else's arguments."""
        noise = Noise(state_eps=self._state_eps(), inputs=not self._same_conditions())
        noises = (self._reference, replace(noise, state_eps=0.0)), (self._candidate, noise)
        found = [self._run(side, one, {""}, all_floors=True) for side, one in noises]
        return max((own[""].floor for own in found if "" in own), default=math.nan)

    def beyond(self, examined: dict[str, OwnError]) -> tuple[OwnError, ...]:
        """Those that lie too many floors up, and in float64 nowhere near; no kernels that are as exact as eager."""
        far = {name for name, one in examined.items() if one.floors > OWN_MULTIPLE}
        if not far:
            return ()
        replays = self._replayed(far)
        natively = [
            replace(one, replayed=replays[name].own)
            for name, one in examined.items()
            if name in far and name in replays and replays[name].own * OWN_MULTIPLE <= one.own
        ]
        if not natively or not self._kernels:
            return tuple(natively)
        checked = [self._against_eager(one) for one in natively]
        return tuple(one for one in checked if one.kernel is None or one.kernel > KERNEL_MULTIPLE)

    def _run(
        self,
        side: Side,
        noise: Noise | None,
        names: set[str] | None,
        *,
        all_floors: bool = False,
        errors: Mapping[str, OwnError] | None = None,
    ) -> dict[str, OwnError]:
        found: dict[str, OwnError] = {}
        order: dict[str, None] = {}
        for kept in self._parts(names):
            examination = Examination(
                kept,
                self._reference.calls,
                noise,
                same_backend=self._same_backend or side is self._reference,
                all_floors=all_floors,
                decisive=not self._full and (not all_floors or errors is not None),
                errors=errors,
            )
            found |= examination.run(side, {key[1] for key in kept} if order else names).found
            order = order or examination.order
            del kept, examination  # let go of before the next ones come
        return {name: found[name] for name in order if name in found}

    def _same_conditions(self) -> bool:
        """Whether the candidate's own rounding explains nothing that the reference's does not."""
        left, right = ({name: switch.value for name, switch in side.switches.items()} for side in self._sides)
        casts = arguments_undone(*self._sides, self._found) is not self._candidate
        return self._same_backend and left == right and self._found.coarser is None and not casts

    @property
    def _sides(self) -> tuple[Side, Side]:
        return self._reference, self._candidate

    def _state_eps(self) -> float:
        return torch.finfo(self._found.coarser).eps if self._found.coarser else 0.0

    def _replayed(self, names: set[str]) -> dict[str, OwnError]:
        """Own errors in float64 with the state as it was loaded: what storing it in another dtype costs is in there."""
        found: dict[str, OwnError] = {}
        while names:
            with replayed(self._reference) as (side, _):
                captured = self._captured(side, names)
            with replayed(self._candidate) as (side, _):
                kept, calls = captured.kept, self._reference.calls
                examination = Examination(kept, calls, None, same_backend=self._same_backend)
                found |= examination.run(side, {key[1] for key in kept}).found
            names = set(captured.left)
            del captured, kept, examination  # let go of before the next ones come
        return found

    def _against_eager(self, one: OwnError) -> OwnError:
        """The kernel's error over eager's, where eager attention in the same precision does what the reference does."""
        candidate, names = self._candidate, {one.name}
        kept = next(self._parts(names))

        def outputs(side: Side) -> Examination:
            examination = Examination(kept, self._reference.calls, None, same_backend=False, keep=True)
            return examination.run(side, names)

        kernel = outputs(candidate)
        with attention(candidate.model, "eager"):
            eager = outputs(candidate)
        with replayed(candidate) as (side, _):
            exact = outputs(side)
        shared = [key for key in kernel.outputs if key in eager.outputs and key in exact.outputs]
        close = one.name in eager.found and eager.found[one.name].own <= OWN_MULTIPLE * one.floor
        if not shared or not close:
            return one
        errors = [max(self._error(ran, exact, key) for key in shared) for ran in (kernel, eager)]
        return replace(one, kernel=errors[0] / errors[1] if errors[1] else math.inf)

    def _error(self, ran: Examination, exact: Examination, key: Key) -> float:
        return distance(exact.outputs[key], ran.outputs[key], self._reference.calls[key[0]]) or 0.0
