"""What rounding in a module costs: its output again and again with everything that rounds in it nudged."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sweeper.comparator.outputs import same_bits
from sweeper.comparator.side import Call
from sweeper.inputs.layout import is_attention_map, to_rows
from sweeper.verdict.draws import Draws
from sweeper.verdict.first_divergence import rel_l2
from sweeper.verdict.module_runs import Given, outputs_of
from sweeper.verdict.monte_carlo import OperationNoise, multiplied

_SEEDS = 3
_APART = 2**16  # from the seeds of operations, so that what goes in and comes out is nudged by other numbers


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

        if not self.products_only and enough < math.inf and (first := sample(0, few=True)) >= one_must_reach(enough):
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


def one_must_reach(enough: float) -> float:
    """What one sample must reach so that the floor reaches `enough`, whatever the others give."""
    return enough * math.sqrt(_SEEDS)


def _nudge_(tensor: Tensor, draws: Draws) -> None:
    tensor.copy_(multiplied(tensor, draws, torch.finfo(tensor.dtype).eps))


def same_leaves(given: Given, args: Any, kwargs: Any) -> bool:
    """Whether the arguments are, bit for bit, those that the module is called with; only tensors and plain values."""
    ours, theirs = tree_leaves((given.args, given.kwargs)), tree_leaves((args, kwargs))
    return len(ours) == len(theirs) and all(map(_same_leaf, ours, theirs))


def _same_leaf(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and same_bits(one, other)
    return isinstance(one, (bool, int, float, str, type(None))) and type(one) is type(other) and one == other


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
