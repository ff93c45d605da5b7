"""Switches put back: training mode, global flags, pooling, attention backend, dtype; each kind of module upcast."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from sweeper.comparator.side import Call, Side
from sweeper.models.names import counterparts
from sweeper.models.swapping import doubled, swapped
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.float64_replay import Lift, Precision, attention, attention_implementation
from sweeper.verdict.state_changes import aligned_states


def training_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """`.eval()`, where the candidate is in training mode and the reference is not."""
    reference = counterparts(pair.reference.model, pair.candidate.model)
    modes = {name: module.training for name, module in reference.items()}
    modules = [
        module for name, module in pair.candidate.model.named_modules() if module.training and not modes.get(name)
    ]
    if not modules:
        return []
    name = f"training mode: {len(modules)} modules of the candidate were left in it (dropout, running statistics)"
    return [Counterfactual(name, "call candidate.eval()", "training", _evaluating(modules))]


def _evaluating(modules: list[nn.Module]) -> Callable[[Pair], AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        try:
            for module in modules:
                module.training = False
            yield pair
        finally:
            for module in modules:
                module.training = True

    return apply


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
    alone = [_switched(pair, [name]) for name in differing]
    return [*alone, _switched(pair, differing)] if len(differing) > 1 else alone


def _switched(pair: Pair, names: Sequence[str]) -> Counterfactual:
    left, right = (side.switches for side in pair)

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


def dtype_counterfactuals(pair: Pair) -> list[Counterfactual]:
    """The reference's dtype, with its values, for all state that a file holds."""
    left, right = aligned_states(pair.reference.model, pair.candidate.model)
    names = [
        name
        for name, entry in left.items()
        if name in right and entry.stored and entry.tensor.dtype != right[name].tensor.dtype
    ]
    if not names:
        return []

    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        values = ((name, functools.partial(_on_device_of, left[name].tensor)) for name in names)
        with swapped(pair.candidate.model, values):
            yield Pair(pair.reference, _cast_inputs(pair.candidate, left[names[0]].tensor.dtype))

    before, after = (str(state[names[0]].tensor.dtype).removeprefix("torch.") for state in (left, right))
    some = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    if len(names) == sum(entry.stored for entry in left.values()):
        return [
            Counterfactual(f"dtype: {before} -> {after}", f"load the candidate with dtype={before}", "dtype", apply)
        ]
    return [Counterfactual(f"dtype of {some}: {before} -> {after}", f"load {some} with dtype={before}", "dtype", apply)]


def _cast_inputs(side: Side, dtype: torch.dtype) -> Side:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    calls = [Call({name: cast(value) for name, value in call.kwargs.items()}, call.forward) for call in side.calls]
    return replace(side, calls=tuple(calls))


def _on_device_of(tensor: Tensor, held: Tensor) -> Tensor:
    return tensor.to(held.device)


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


@contextlib.contextmanager
def _in_float64(module: nn.Module) -> Iterator[None]:
    """The module computes in float64; its result has the dtype that it had."""
    own, before = module.forward, vars(module).get("forward")

    def forward(*args: Any, **kwargs: Any) -> Any:
        dtype = next(
            (leaf.dtype for leaf in [*args, *kwargs.values()] if isinstance(leaf, Tensor) and leaf.is_floating_point()),
            next((parameter.dtype for parameter in module.parameters()), torch.get_default_dtype()),
        )
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
