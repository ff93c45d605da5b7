"""Compiled code that rounds otherwise, and compiled code that computes something else: a pass that goes wrong."""

from __future__ import annotations

import operator
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.models import load, padded
from tests.zoo.pairs import Pair, PairModels
from tests.zoo.parts import main_output
from tests.zoo.serving.of_models import of_models

MODELS = (("llama", torch.bfloat16), ("qwen3", torch.float32))
_AS_WRITTEN: Any = {"backend": "aot_eager"}


class Compiled(nn.Module):
    """A model behind `torch.compile`, as who serves it has it."""

    def __init__(self, model: nn.Module, **options: Any) -> None:
        super().__init__()
        self.model = model
        self._call: Any = torch.compile(model.forward, dynamic=False, **options)

    def forward(self, **inputs: Tensor) -> Tensor:
        return main_output(self._call(**inputs))


def compiled(**options: Any) -> Any:
    """The same model behind `torch.compile`."""

    def build(model: str, dtype: torch.dtype) -> PairModels:
        torch.compiler.reset()
        candidate = Compiled(load(model, dtype), **options)
        return PairModels(reference=load(model, dtype), candidate=candidate, inputs=padded())

    return build


def in_place(model: str, dtype: torch.dtype) -> PairModels:
    """model.compile(), which keeps the names."""
    torch.compiler.reset()
    candidate = load(model, dtype)
    candidate.compile(**_AS_WRITTEN)
    return PairModels(reference=load(model, dtype), candidate=candidate, inputs=padded())


def layers(model: str, dtype: torch.dtype) -> PairModels:
    """Each layer is compiled alone."""
    torch.compiler.reset()
    candidate = load(model, dtype)
    for layer in candidate.model.layers:
        layer.compile(**_AS_WRITTEN)
    return PairModels(reference=load(model, dtype), candidate=candidate, inputs=padded())


def miscompiled(change: Callable[[torch.fx.GraphModule], None]) -> Any:
    """Compiled by a backend with a pass that goes wrong."""

    def backend(graph: torch.fx.GraphModule, _inputs: Any) -> Any:
        change(graph)
        graph.recompile()
        return graph.forward

    return compiled(backend=backend)


def put(old: Any, new: Any, *, last: bool = False) -> Callable[[torch.fx.GraphModule], None]:
    """One function in place of another, in all places or in the last one."""

    def change(graph: torch.fx.GraphModule) -> None:
        found = [node for node in graph.graph.nodes if node.target is old]
        for node in found[-1:] if last else found:
            node.target = new

    return change


def drop_residual(graph: torch.fx.GraphModule) -> None:
    """The last sum of two results gives its first term."""
    sums = [node for node in graph.graph.nodes if node.target is operator.add]
    node = [node for node in sums if all(isinstance(argument, torch.fx.Node) for argument in node.args)][-1]
    node.replace_all_uses_with(node.args[0])


def silu_as_gelu(hidden: Tensor, inplace: bool = False) -> Tensor:
    """Another activation than was asked for."""
    return functional.gelu(hidden)


def fast_rsqrt(variance: Tensor) -> Tensor:
    """A root that a fast-math pass took a step too few for."""
    guess = torch.exp2(-0.5 * torch.log2(variance).round())
    return guess * (1.5 - 0.5 * variance * guess * guess)


def stale_weights(model: str, dtype: torch.dtype) -> PairModels:
    """Weights that were frozen into the code, and changed since on both sides."""
    torch.compiler.reset()
    reference = load(model, dtype)
    frozen = deepcopy(reference)

    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load(model, dtype)
            self.code = torch.compile(frozen.forward, **_AS_WRITTEN)

        def forward(self, **inputs: Tensor) -> Tensor:
            return main_output(self.code(**inputs))

    candidate = Frozen()
    with torch.no_grad():
        for side in (reference, candidate.model):
            side.model.layers[1].mlp.up_proj.weight[:16] *= 1.5
    return PairModels(reference=reference, candidate=candidate, inputs=padded())


PAIRS: list[Pair] = of_models(
    [
        ("compile_aot_eager", (), compiled(**_AS_WRITTEN)),
        ("compile_in_place", (), in_place),
        ("compile_layers", (), layers),
        ("compile_inductor", (), compiled()),
        ("compile_precise_casts", (), compiled(options={"emulate_precision_casts": True})),
        ("compile_wrong_activation", ("compile",), miscompiled(put(functional.silu, silu_as_gelu))),
        ("compile_lost_residual", ("compile",), miscompiled(drop_residual)),
        ("compile_fast_root", ("compile",), miscompiled(put(torch.rsqrt, fast_rsqrt))),
        ("compile_wrong_sign", ("compile",), miscompiled(put(operator.neg, operator.pos))),
        ("compile_stale_weights", ("compile", "frozen"), stale_weights),
    ],
    MODELS,
)
