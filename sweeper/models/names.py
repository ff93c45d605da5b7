"""Which module of one model is which of another: by structure, so that wrappers are looked through.

Adapters (PEFT), `torch.compile`, data parallelism and whoever holds a model in an attribute put names before its
names, or between them. A wrapper and what it wraps are both the other side's module.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

# Among how many of the nearest modules on either side what two different wrappers wrap is looked for.
_WRAPPERS = 8


@dataclass(frozen=True)
class Alignment:
    """The modules of two models that are each other's.

    Attributes:
        pairs: paths in the reference and in the candidate; a wrapper comes before what it wraps.
        only_reference: paths of modules that only the reference has.
    """

    pairs: tuple[tuple[str, str], ...]
    only_reference: tuple[str, ...]

    def shown(self, *, reference: bool) -> dict[str, str]:
        """What to call each module of one side where outputs are compared: by the candidate's names.

        Empty names: the module is a wrapper's inside, or a wrapper around the whole model; its output is another's.
        """
        taken: set[str] = set()
        names: dict[str, str] = {}
        for ours, theirs in self.pairs:
            own, other = (ours, theirs) if reference else (theirs, ours)
            inner = own in names or other in taken
            taken.add(other)
            names.setdefault(own, "" if inner or not ours or not theirs else theirs)
        if reference:
            others = {theirs for _, theirs in self.pairs}
            names |= {name: f"{name} (the reference's)" if name in others else name for name in self.only_reference}
        return names

    def modules(self, reference: nn.Module) -> dict[str, nn.Module]:
        """The reference's modules by the candidate's names; under their own where the candidate has none."""
        own = dict(reference.named_modules(remove_duplicate=False))
        paired = {theirs: own[ours] for ours, theirs in self.pairs if ours or not theirs}
        return paired | {name: own[name] for name in self.only_reference if name not in paired}

    def state(self, reference: Collection[str], candidate: Collection[str]) -> dict[str, str]:
        """The candidate's name of each tensor of the reference that has one; given the names of both sides' tensors."""
        held: dict[str, list[tuple[str, str]]] = {}
        for name in reference:
            path, leaf = _place(name)
            held.setdefault(path, []).append((leaf, name))
        theirs_at = {_place(name): name for name in candidate}
        names: dict[str, str] = {}
        for ours, theirs in self.pairs:
            for leaf, name in held.get(ours, ()):
                if name not in names and (theirs, leaf) in theirs_at:
                    names[name] = theirs_at.pop((theirs, leaf))
        return names


def counterparts(reference: nn.Module, candidate: nn.Module) -> dict[str, nn.Module]:
    """`Alignment.modules` of two models, at once where all names are the same."""
    own = dict(reference.named_modules())
    return (
        own if own.keys() == dict(candidate.named_modules()).keys() else align(reference, candidate).modules(reference)
    )


def _place(name: str) -> tuple[str, str]:
    """The module that computes with a tensor, and what it calls it: torch's parametrizations move the original."""
    path, _, leaf = name.rpartition(".")
    owner, moved, parametrized = path.rpartition("parametrizations.")
    if moved and leaf == "original":
        return owner.removesuffix("."), parametrized
    return path, leaf


def align(reference: nn.Module, candidate: nn.Module) -> Alignment:
    """Matches the modules of two models.

    Where names and structure are the same, so are the modules. Where they are not, a module is matched with the one
    inside the other side's that shares most with it; what is left is matched by its name, or not at all.
    """
    left, right = _Tree(reference), _Tree(candidate)
    pairs = tuple(_matched(left, "", right, ""))
    paired = {ours for ours, _ in pairs}
    return Alignment(pairs, tuple(name for name in left.modules if name not in paired))


class _Tree:
    """A model by paths: modules, and what each holds by relative names."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self._parts: dict[str, frozenset[Any]] = {}

    def parts(self, path: str) -> frozenset[Any]:
        """Names of all below a module with what they are: shape or class; its own class too."""
        if path not in self._parts:
            module = self.modules[path]
            found: set[Any] = {("", type(module)), *_shapes(module).items()}
            for child in self.children(path):
                below = self.parts(_join(path, child))
                found |= {(_join(child, name), what) for name, what in below}
            self._parts[path] = frozenset(found)
        return self._parts[path]

    def children(self, path: str) -> list[str]:
        return [name for name, child in self.modules[path]._modules.items() if child is not None]

    def below(self, path: str) -> list[str]:
        """The paths of all modules below, the nearest first."""
        found = [_join(path, child) for child in self.children(path)]
        for inner in found:
            found.extend(_join(inner, child) for child in self.children(inner))
        return found


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of a module's own tensors, by name."""
    own = [*module._parameters.items(), *module._buffers.items()]
    return {name: tuple(tensor.shape) for name, tensor in own if tensor is not None}


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _matched(left: _Tree, ours: str, right: _Tree, theirs: str) -> Iterator[tuple[str, str]]:
    yield ours, theirs
    inner_ours, inner_theirs = _looked_through(left, ours, right, theirs)
    if (inner_ours, inner_theirs) != (ours, theirs):
        yield from ((ours, between) for between in _between(theirs, inner_theirs))
        yield from ((between, theirs) for between in _between(ours, inner_ours))
        yield from _matched(left, inner_ours, right, inner_theirs)
        return
    for name in left.children(ours):
        if name in right.children(theirs):
            yield from _matched(left, _join(ours, name), right, _join(theirs, name))


def _looked_through(left: _Tree, ours: str, right: _Tree, theirs: str) -> tuple[str, str]:
    """The two modules themselves, or one of them and a module inside the other that shares more with it."""
    best, most = (ours, theirs), len(left.parts(ours) & right.parts(theirs))
    if left.parts(ours) == right.parts(theirs):
        return best
    mine, others = left.below(ours), right.below(theirs)
    inside = [(ours, inner) for inner in others] + [(inner, theirs) for inner in mine]
    if not _alike(left.modules[ours], right.modules[theirs]):  # both may be wrappers, and not of the same name
        inside += itertools.product(mine[:_WRAPPERS], others[:_WRAPPERS])
    for one, other in inside:
        shared = len(left.parts(one) & right.parts(other))
        if shared > most and _alike(left.modules[one], right.modules[other]):
            best, most = (one, other), shared
    return best


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two modules can be each other's: of one class, or with half of their names in common; no other shapes."""
    mine, theirs = _shapes(one), _shapes(other)
    if any(mine[name] != theirs[name] for name in mine.keys() & theirs.keys()):
        return False
    names = mine.keys() | one._modules.keys(), theirs.keys() | other._modules.keys()
    return type(one) is type(other) or 2 * len(names[0] & names[1]) >= max(1, *map(len, names))


def _between(outer: str, inner: str) -> list[str]:
    """The paths of the modules between an outer and an inner one."""
    names = inner.removeprefix(outer).strip(".").split(".")
    return [_join(outer, ".".join(names[:end])) for end in range(1, len(names))]
