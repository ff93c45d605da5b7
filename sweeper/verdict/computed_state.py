"""State that was computed from state and stored again: merged adapters, folded norms, fused projections.

Storing rounds once more, which a replay in float64 keeps. That is excused inside the smallest modules that hold all
that differs, where one side has tensors that the other has not: the candidate's module, on the arguments that the
reference's had, may lie no farther off in float64 than half a unit in the last place of its weights moves it, feature
by feature. A weight that merely differs is not excused, nor is anything outside: the rest of the model is replayed with
the reference's modules in these places.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from sweeper.comparator.side import Side
from sweeper.devices import suppressed
from sweeper.models.names import Alignment, align
from sweeper.models.state import StateEntry, pieces
from sweeper.models.swapping import Swap, transplanted
from sweeper.verdict.causes.tensors import asked_undone
from sweeper.verdict.float64_replay import replayed
from sweeper.verdict.module_runs import Given, Kept, Key, capture, copied, outputs_of
from sweeper.verdict.state_changes import Change, Provenance, aligned_states
from sweeper.verdict.thresholds import COLLAPSE_MULTIPLE, FLOAT64_EPS, STORED_MULTIPLE

_SEEDS = 4
_LEVELS = 4  # how far out from the smallest modules it is looked
CallOutputs = list[list[Tensor | None]]  # of one module, call by call


@dataclass(frozen=True)
class Computed:
    """A module whose state was computed from state.

    Attributes:
        reference, name: its path in either model.
        distance: the largest of its features' distances over what storing the weights costs that feature.
    """

    reference: str
    name: str
    distance: float

    @property
    def excused(self) -> bool:
        return self.distance <= STORED_MULTIPLE


def computed_modules(reference: Side, candidate: Side, found: Provenance) -> list[Computed]:
    """The smallest modules that together hold all one-sided and changed tensors; none for a single changed weight."""
    if not found.missing and len(found.other) < 2:
        return []
    alignment = _callable(align(reference.model, candidate.model), reference.model, candidate.model)
    states = aligned_states(reference.model, candidate.model)
    of_candidate = {theirs: ours for ours, theirs in reversed(alignment.pairs)}  # of wrappers the outermost
    done: dict[str, Computed] = {}
    places = _regions(alignment, found, states[0])
    for _ in range(_LEVELS):
        paths = {path: of_candidate[path] for path in places - done.keys()}
        done |= _computed(reference, candidate, found, paths, states)
        failed = {path for path in places if path and not done[path].excused}
        if not failed:
            break
        # what is computed in one module may be taken from its neighbour: a norm folded into a layer
        places = _outermost((places - failed) | {_around(path, of_candidate) for path in failed})
    return [done.get(path, Computed(of_candidate[path], path, math.inf)) for path in sorted(places)]


def _computed(
    reference: Side,
    candidate: Side,
    found: Provenance,
    paths: Mapping[str, str],
    states: tuple[Mapping[str, StateEntry], Mapping[str, StateEntry]],
) -> dict[str, Computed]:
    """Judges the modules at these paths, candidate's -> reference's; by the candidate's paths."""
    with asked_undone(reference.model, found, reference=True), replayed(reference) as (side, _):
        kept = capture(replace(side, names={}), set(paths.values())).kept  # by the reference's own paths
    done = {}
    for theirs, ours in paths.items():
        distance = math.inf
        if _may_be_computed(found, theirs, ours):
            with suppressed(Exception):  # a module that does not run by itself is not judged by itself
                calls = {key: call for key, call in kept.items() if key[1] == ours}
                module = _Module(reference, candidate, found, ours, theirs, calls)
                distance = module.distance(*(_inside_of(state, (ours, theirs), found) for state in states))
        done[theirs] = Computed(ours, theirs, distance)
    return done


def _may_be_computed(found: Provenance, theirs: str, ours: str) -> bool:
    """Whether a module holds a one-sided tensor, or two modules with changed ones, one of them by more than rounding.

    Then what one change does, the other can undo; what differs in a last place merely differs.
    """
    if any(_lies_in(name, theirs) or _lies_in(name, ours) for name in found.missing):
        return True
    changes = [change for name, change in found.other.items() if _lies_in(name, theirs)]
    owners = {change.name.rpartition(".")[0] for change in changes}
    return len(owners) > 1 and any(map(_by_more_than_rounding, changes))


def _by_more_than_rounding(change: Change) -> bool:
    left, right = change.reference, change.candidate
    if left.shape != right.shape or not left.is_floating_point():
        return True
    eps = STORED_MULTIPLE * torch.finfo(left.dtype).eps
    return any(
        bool(((one.double() - other.double()).abs() > eps * one.double().abs()).any())
        for one, other in pieces(left, right)
    )


def without(
    candidate: nn.Module, reference: nn.Module, modules: Sequence[Computed]
) -> contextlib.AbstractContextManager[None]:
    """The candidate with the reference's modules in these places: what then differs lies outside."""
    return transplanted(candidate, {module.name: reference.get_submodule(module.reference) for module in modules})


def _callable(alignment: Alignment, reference: nn.Module, candidate: nn.Module) -> Alignment:
    """The modules that are called: not a list of them."""

    def called(module: nn.Module) -> bool:
        return type(module).forward is not nn.Module.forward

    pairs = [
        (ours, theirs)
        for ours, theirs in alignment.pairs
        if called(reference.get_submodule(ours)) and called(candidate.get_submodule(theirs))
    ]
    return replace(alignment, pairs=tuple(pairs))


def _regions(alignment: Alignment, found: Provenance, left: Mapping[str, StateEntry]) -> set[str]:
    """The smallest modules around what differs, by the candidate's paths; none inside another."""
    of_candidate = {theirs for _, theirs in alignment.pairs}
    of_reference = dict(reversed(alignment.pairs))
    homes = set()
    for name in found.missing:
        path = _around(name.removesuffix(" (the reference's)"), of_reference if name in left else of_candidate)
        homes.add(of_reference[path] if name in left else path)
    places = set(homes)
    for name in found.other:  # the nearest module around it that holds something one-sided, or another module
        path = name if homes else _around(name, of_candidate)
        while path := _around(path, of_candidate):
            if not homes:
                break
            if any(_lies_in(home, path) for home in homes):
                break
        places.add(path)
    return _outermost(places)


def _outermost(places: set[str]) -> set[str]:
    return {path for path in places if not any(other != path and _lies_in(path, other) for other in places)}


def _around(name: str, paths: Collection[str]) -> str:
    """The nearest of the paths around a name; the model itself has the empty one."""
    path = name.rpartition(".")[0]
    while path and path not in paths:
        path = path.rpartition(".")[0]
    return path


def _lies_in(path: str, other: str) -> bool:
    return not other or path == other or path.startswith(f"{other}.")


def _inside_of(state: Mapping[str, StateEntry], paths: tuple[str, str], found: Provenance) -> list[StateEntry]:
    """The tensors in a module that differ or that only this side has, as far as they can be rounded.

    What only the reference has goes by the reference's names, all else by the candidate's.
    """
    differing = {*found.other, *found.missing}
    return [
        entry
        for name, entry in state.items()
        if entry.stored and name in differing and any(_lies_in(name, path) for path in paths)
    ]


class _Module:
    """One module of both models, on the arguments that the reference's has in its replay."""

    def __init__(
        self, reference: Side, candidate: Side, found: Provenance, ours: str, theirs: str, kept: Mapping[Key, Kept]
    ) -> None:
        self._reference, self._candidate, self._found = reference, candidate, found
        self._ours, self._theirs = ours, theirs
        self._kept = kept

    def distance(self, left: Sequence[StateEntry], right: Sequence[StateEntry]) -> float:
        """The `distance` of `Computed`, given the tensors of either side that were stored anew."""
        want = [call.output for call in self._kept.values()]
        off = _differences(want, self._outputs(reference=False))
        costs = [cost for cost in (self._cost(left, reference=True), self._cost(right, reference=False)) if cost]
        return max(
            _ratio(leaf, want[call][index], [cost[call][index] for cost in costs])
            for call, leaves in enumerate(off)
            for index, leaf in enumerate(leaves)
            if leaf is not None
        )

    def _outputs(self, *, reference: bool) -> CallOutputs:
        side, path = (self._reference, self._ours) if reference else (self._candidate, self._theirs)
        module = side.model.get_submodule(path)
        with (
            asked_undone(side.model, self._found, reference=reference),
            replayed(side) as (exact, _),
            exact.conditions(),
            torch.no_grad(),
        ):
            return [outputs_of(module, _given(call)) for call in self._kept.values()]

    def _cost(self, entries: Sequence[StateEntry], *, reference: bool) -> CallOutputs:
        """How far storing these tensors moves the outputs: the root mean square over some draws."""
        if not entries:
            return []
        base = self._outputs(reference=reference)
        runs = []
        for seed in range(_SEEDS):
            with _stored_otherwise(entries, seed):
                runs.append(_differences(base, self._outputs(reference=reference)))
        return [[_root_mean_square(leaves) for leaves in zip(*calls, strict=True)] for calls in zip(*runs, strict=True)]


def _given(call: Kept) -> Given:
    args = tuple(copied(value) for value in call.args)
    return Given(args, {name: copied(value) for name, value in call.kwargs.items()}, [])


@contextlib.contextmanager
def _stored_otherwise(entries: Iterable[StateEntry], seed: int) -> Iterator[None]:
    """Every number up to half a unit in the last place of its dtype off, at random, in float64."""
    generator = torch.Generator().manual_seed(seed)
    swap = Swap()
    try:
        for entry in entries:
            swap.give(getattr(entry.owner, entry.leaf), _half_a_unit_off(generator), torch.float64)
        yield
    finally:
        swap.put_back()


def _half_a_unit_off(generator: torch.Generator) -> Callable[[Tensor], Tensor]:
    def value(held: Tensor) -> Tensor:
        drawn = torch.rand(held.shape, generator=generator, dtype=torch.float64).to(held.device)
        return held.double() * (1 + torch.finfo(held.dtype).eps * (drawn - 0.5))

    return value


def _differences(one: CallOutputs, other: CallOutputs) -> CallOutputs:
    """Leaf by leaf.

    Raises:
        ValueError, RuntimeError: they are not of the same number and shapes.
    """
    return [
        [None if left is None or right is None else right - left for left, right in zip(*pair, strict=True)]
        for pair in zip(one, other, strict=True)
    ]


def _root_mean_square(leaves: Sequence[Tensor | None]) -> Tensor | None:
    squares = [leaf.square() for leaf in leaves if leaf is not None]
    return torch.stack(squares).mean(0).sqrt() if squares else None


def _ratio(off: Tensor, want: Tensor | None, costs: Sequence[Tensor | None]) -> float:
    """The largest over all features of one output, by its second dimension and by its last."""
    largest = 0.0
    for dim in {min(1, off.dim() - 1), off.dim() - 1}:
        size, own = _by_feature(off, dim), _by_feature(want if want is not None else off, dim)
        moved = [_by_feature(cost, dim) for cost in costs if cost is not None]
        bound = torch.stack([own * COLLAPSE_MULTIPLE * FLOAT64_EPS, *moved]).amax(0)
        largest = max(largest, float(torch.where(size > 0, size / bound, torch.zeros_like(size)).amax()))
    return largest


def _by_feature(tensor: Tensor, dim: int) -> Tensor:
    """The 2-norm of each feature over everything else."""
    return tensor.movedim(dim, 0).flatten(1).norm(dim=1) if tensor.dim() > 1 else tensor.abs()
