"""Switches put back: training mode, global flags, pooling, attention backend, dtype; each kind of module upcast."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sweeper.comparator.side import Side
from sweeper.models.axis import Switch
from sweeper.models.state import StateEntry
from sweeper.models.swapping import Given, doubled, swapped
from sweeper.verdict.causes.arguments import arguments_undone, cast_arguments
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.float64_replay import Lift, Precision, attention, attention_implementation
from sweeper.verdict.repeatability import SIDES, evaluating, training_modules
from sweeper.verdict.state_changes import Provenance, aligned_states
from sweeper.verdict.wording import some_of


def training_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """`.eval()` of a side that is in training mode; of both at once where both are, alone where they are alike."""
    modes = [{name: module.training for name, module in side.model.named_modules()} for side in pair]
    left = [name for name, own in zip(SIDES, modes, strict=True) if any(own.values())]
    if len(left) < 2:
        return [_in_eval(left)] if left else []
    return [_in_eval(SIDES)] if modes[0] == modes[1] else [_in_eval(left[:1]), _in_eval(left[1:]), _in_eval(SIDES)]


def _in_eval(names: Sequence[str]) -> Counterfactual:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        sides = dict(zip(SIDES, pair, strict=True))
        with evaluating([module for name in names for module in training_modules(sides[name].model)]):
            # a new object where the reference's outputs are not what they were
            yield Pair(replace(pair.reference), pair.candidate) if "reference" in names else pair

    whose = " and ".join(names)
    title = f"training mode: modules of the {whose} were left in it (dropout, running statistics)"
    fix = " and ".join(f"{name}.eval()" for name in names)
    return Counterfactual(title, f"call {fix}", "training", apply)


def attention_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """The reference's attention backend for the candidate, where they differ."""
    left, right = (attention_implementation(side.model) for side in pair)
    if left is None or right is None or left == right:
        return []

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with attention(pair.candidate.model, left):
            yield pair

    return [
        Counterfactual(f"attention backend: {left} -> {right}", f"attn_implementation={left!r}", "attention", apply)
    ]


def switch_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """Each global flag, the pinned kernel and autocast alone, where the sides differ in it; then all at once."""
    left, right = (side.switches for side in pair)
    differing = [name for name in left if name in right and left[name].value != right[name].value]
    alone = [part for name in differing for part in _in_parts(pair, name)]
    return [*alone, _switched(pair, differing)] if len(differing) > 1 else alone


def _in_parts(pair: Pair, name: str) -> list[Counterfactual]:
    """What the candidate's value of a switch is made of, one part less each time, down to the reference's value."""
    left, right = (side.switches[name] for side in pair)
    passed = [switch for switch in right.halfway if switch.value != left.value]
    return [*(_switched(pair, [name], {name: switch}) for switch in passed), _switched(pair, [name])]


def _switched(pair: Pair, names: Sequence[str], others: Mapping[str, Switch] | None = None) -> Counterfactual:
    """These switches as the reference has them, or as `others` say."""
    left, right = {**pair.reference.switches, **(others or {})}, pair.candidate.switches

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        switches = {**pair.candidate.switches, **{name: left[name] for name in names}}
        yield Pair(pair.reference, replace(pair.candidate, switches=switches))

    title = "; ".join(f"{name}: {left[name].value} -> {right[name].value}" for name in names)
    fix = " ".join(left[name].fix for name in names)
    return Counterfactual(title, fix, "switch", apply, wide=len(names) > 1)


def pooling_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """The reference's pooling for the candidate, where they differ."""
    left, right = (side.pooling for side in pair)
    if left is None or right is None or left is right:
        return []

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        yield Pair(pair.reference, replace(pair.candidate, pooling=left))

    return [Counterfactual(f"pooling: {left} -> {right}", f"checkpoint.pooling={left}", "pooling", apply)]


def dtype_counterfactuals(pair: Pair, found: Provenance) -> list[Counterfactual]:
    """The reference's dtype, with its values, for all state that a file holds and the arguments cast with it."""
    left, right = aligned_states(pair.reference.model, pair.candidate.model)
    names = [
        name
        for name, entry in left.items()
        if name in right and entry.stored and right[name].stored and entry.held.dtype != right[name].held.dtype
    ]
    if not names:
        return _argument_dtype(pair, found)

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        values = (Given(name, functools.partial(_value_of, left[name]), left[name].held.dtype) for name in names)
        with swapped(pair.candidate.model, values):
            undone = arguments_undone(*pair, found)
            yield Pair(pair.reference, _cast_inputs(undone, left[names[0]].held.dtype))

    before, after = (str(state[names[0]].held.dtype).removeprefix("torch.") for state in (left, right))
    some = some_of(names, 1)
    if len(names) == sum(entry.stored for entry in left.values()):
        return [
            Counterfactual(f"dtype: {before} -> {after}", f"load the candidate with dtype={before}", "dtype", apply)
        ]
    return [Counterfactual(f"dtype of {some}: {before} -> {after}", f"load {some} with dtype={before}", "dtype", apply)]


def _argument_dtype(pair: Pair, found: Provenance) -> list[Counterfactual]:
    """Where no state was cast: the arguments that were."""
    names = cast_arguments(*pair, found)
    if not names:
        return []

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        yield Pair(pair.reference, arguments_undone(*pair, found))

    title = f"dtype of the argument{'s' if len(names) > 1 else ''} {', '.join(names)}"
    return [Counterfactual(title, "pass them in the reference's dtype", "dtype", apply)]


def _cast_inputs(side: Side, dtype: torch.dtype) -> Side:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    calls = [replace(call, kwargs={name: cast(value) for name, value in call.kwargs.items()}) for call in side.calls]
    return replace(side, calls=tuple(calls))


def _value_of(entry: StateEntry, held: Tensor) -> Tensor:
    return entry.tensor.to(held.device)


def upcast_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """Each kind of leaf module in float64 on both sides: how much of the rounding is made there."""
    kinds: dict[str, None] = {}
    for module in pair.candidate.model.modules():
        if next(module.children(), None) is None and next(module.parameters(), None) is not None:
            kinds[type(module).__name__] = None
    return [
        Counterfactual(f"rounding inside {kind}", f"compute {kind} in a higher precision", "upcast", _upcast(kind))
        for kind in kinds
    ]


def _upcast(kind: str) -> Callable[[Pair], AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with contextlib.ExitStack() as stack:
            for model in {id(side.model): side.model for side in pair}.values():
                for module in model.modules():
                    if type(module).__name__ == kind:
                        stack.enter_context(_in_float64(module))
            yield pair

    return apply


def precise_counterfactuals(names: Sequence[str]) -> list[Counterfactual]:
    """Single modules of the candidate that are given their input in float64 and compute in it."""
    return [
        Counterfactual(
            f"{name} follows the dtype of what it is given, and computes in it what has to be exact",
            f"compute {name} in float32",
            "code",
            _precise(name),
        )
        for name in names
    ]


def _precise(name: str) -> Callable[[Pair], AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with _in_float64(pair.candidate.model.get_submodule(name)):
            yield pair

    return apply


@contextlib.contextmanager
def _in_float64(module: nn.Module) -> Iterator[None]:
    """The module computes in float64; its result has the dtype that it had."""
    own, before = module.forward, vars(module).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        dtype = next(
            (leaf.dtype for leaf in [*args, *kwargs.values()] if isinstance(leaf, Tensor) and leaf.is_floating_point()),
            next((parameter.dtype for parameter in module.parameters()), torch.get_default_dtype()),
        )

        def double(leaf: Any) -> Any:
            return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        args, kwargs = tree_map(double, (args, kwargs))  # code may follow the dtype of what it is given
        with doubled(module), Lift(Precision()):
            output = own(*args, **kwargs)

        def rounded(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return tree_map(rounded, output)

    try:
        vars(module)["forward"] = forward
        yield
    finally:
        if before is None:
            del vars(module)["forward"]
        else:
            vars(module)["forward"] = before
