"""Passes of a compiler: those that round otherwise, and those that go wrong in a place that is easily overlooked.

Written without sight of what the verdict says of any, after those of `compiling`, so that they are drawn by themselves.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from tests.zoo.pairs import Pair
from tests.zoo.serving.compiling import miscompiled, put
from tests.zoo.serving.of_models import of_models

DECODERS = (("llama", torch.float32), ("qwen3", torch.bfloat16))
BOTH_ROUND = (("qwen3", torch.bfloat16), ("bert", torch.bfloat16))
BOTH_FLOAT32 = (("llama", torch.float32), ("qwen3", torch.float32))
ENCODERS = (("bert", torch.float32), ("bert", torch.bfloat16))


def root_in_steps(variance: Tensor) -> Tensor:
    """Rounded at every step."""
    return 1 / torch.sqrt(variance)


def split_product(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product in two halves, which are summed."""
    K = hidden.shape[-1] // 2
    first = functional.linear(hidden[..., :K], weight[:, :K], bias)
    return first + functional.linear(hidden[..., K:], weight[:, K:])


def product_in_float32(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product that is rounded once."""
    wide = functional.linear(hidden.float(), weight.float(), None if bias is None else bias.float())
    return wide.to(hidden.dtype)


def silu_in_steps(hidden: Tensor, inplace: bool = False) -> Tensor:
    """Rounded at every step."""
    return hidden / (1 + torch.exp(-hidden))


def softmax_in_steps(scores: Tensor, dim: int = -1, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Tensor:
    """Rounded at every step."""
    scores = scores if dtype is None else scores.to(dtype)
    grown = torch.exp(scores - scores.amax(dim, keepdim=True))
    return grown * (1 / grown.sum(dim, keepdim=True))


def gelu_by_tanh(hidden: Tensor, approximate: str = "none") -> Tensor:
    """An approximation that nobody asked for."""
    return 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))


def product_in_bfloat16(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A product in a precision that nobody asked for."""
    short = functional.linear(hidden.bfloat16(), weight.bfloat16(), None if bias is None else bias.bfloat16())
    return short.to(hidden.dtype)


def product_without_tail(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A loop in steps of eight that forgets the last five of what it sums up."""
    return functional.linear(hidden[..., :-5], weight[:, :-5], bias)


def drop_masks(graph: torch.fx.GraphModule) -> None:
    """Softmax takes the scores before the mask was added."""
    for node in graph.graph.nodes:
        if node.target is functional.softmax and len(node.args[0].args) == 2:
            node.args = (node.args[0].args[0], *node.args[1:])


def raise_epsilons(graph: torch.fx.GraphModule) -> None:
    """What is added below the root is that of another model."""
    for node in graph.graph.nodes:
        if node.target is torch.rsqrt:
            node.args[0].args = (node.args[0].args[0], 1e-5)


def merge_roots(graph: torch.fx.GraphModule) -> None:
    """The last root is taken for the first one of its shape, and not computed."""
    roots = [node for node in graph.graph.nodes if node.target is torch.rsqrt]
    shapes = [tuple(root.meta["example_value"].shape) for root in roots]
    if len(roots) > 1:
        roots[-1].replace_all_uses_with(roots[shapes.index(shapes[-1])])


PAIRS: list[Pair] = [
    *of_models(
        [
            ("compile_root_in_steps", (), miscompiled(put(torch.rsqrt, root_in_steps))),
            ("compile_split_products", (), miscompiled(put(functional.linear, split_product))),
            ("compile_silu_in_steps", (), miscompiled(put(functional.silu, silu_in_steps))),
            ("compile_softmax_in_steps", (), miscompiled(put(functional.softmax, softmax_in_steps))),
            ("compile_lost_masks", ("compile",), miscompiled(drop_masks)),
            ("compile_other_epsilons", ("compile",), miscompiled(raise_epsilons)),
            ("compile_merged_roots", ("compile",), miscompiled(merge_roots)),
            ("compile_lost_tail", ("compile",), miscompiled(put(functional.linear, product_without_tail, last=True))),
        ],
        DECODERS,
    ),
    *of_models([("compile_wide_products", (), miscompiled(put(functional.linear, product_in_float32)))], BOTH_ROUND),
    *of_models(
        [("compile_short_products", ("compile",), miscompiled(put(functional.linear, product_in_bfloat16)))],
        BOTH_FLOAT32,
    ),
    *of_models([("compile_other_gelu", ("compile",), miscompiled(put(functional.gelu, gelu_by_tanh)))], ENCODERS),
]
