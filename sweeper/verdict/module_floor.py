"""What rounding in a module costs: its output again and again with everything that rounds in it nudged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
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
from sweeper.verdict.module_runs import Given, floats, outputs_of
from sweeper.verdict.monte_carlo import OperationNoise, multiplied

_SEEDS = 3
_APART = 2**16  # from the seeds of operations, so that what goes in and comes out is nudged by other numbers


@dataclass(frozen=True)
class Noise:
    """What is nudged.

    Attributes:
        state_eps, products_only: as in `OperationNoise`. With products only, inputs and outputs are not nudged either.
        inputs: also nudge what the module is given: it was rounded, where the sides differ in dtype.
    """

    state_eps: float = 0.0
    products_only: bool = False
    inputs: bool = False


class ModuleFloor:
    """The floor of one call of a module, from as many nudged runs as it takes.

    Args:
        arguments: makes the arguments of that call, the run's own to write to.
        output: what the module gives without nudges.
        call: of the model, in which that was.

    Attributes:
        noise: what is nudged.
        within: floors of modules in this one that it calls with what it was given itself, none of it numbers that
            rounding moves: a base model below a head. Each run of this module is one of theirs as well.
    """

    def __init__(
        self,
        noise: Noise,
        module: nn.Module,
        arguments: Callable[[], Given | None],
        output: list[Tensor | None],
        call: Call,
    ) -> None:
        self.noise, self._module, self._arguments = noise, module, arguments
        self._output, self._call = output, call
        self._samples: dict[tuple[int, bool], float] = {}
        self.within: list[ModuleFloor] = []

    def level(self, enough: float = math.inf) -> float:
        """The root mean square of what nudges of inputs, operations and outputs make of the output.

        Args:
            enough: no seed is run behind those that are sure to bring it there. A few nudges, of products with
                activations, come first: where they do, all others would only add to them.
        """
        at_least = enough * math.sqrt(_SEEDS)
        few_first = not self.noise.products_only and enough < math.inf
        if few_first and (first := self._sample(0, few=True)) >= at_least:
            return first
        samples: list[float] = []
        for seed in range(_SEEDS):
            if samples and math.sqrt(sum(sample**2 for sample in samples) / _SEEDS) >= enough:
                break
            samples.append(self._sample(seed))
        return math.sqrt(sum(sample**2 for sample in samples) / len(samples))

    def _sample(self, seed: int, *, few: bool = False) -> float:
        key = seed, few
        if key not in self._samples:
            with ExitStack() as listening:
                within = [(floor, listening.enter_context(floor._listening())) for floor in self._all_within()]
                again = self._run(*key)
            for floor, heard in ((self, [again]), *within):
                if heard and key not in floor._samples:
                    floor._samples[key] = floor._distance(heard[0], seed)
        return self._samples[key]

    def _all_within(self) -> Iterator[ModuleFloor]:
        for floor in self.within:
            yield floor
            yield from floor._all_within()

    @contextmanager
    def _listening(self) -> Iterator[list[list[Tensor | None]]]:
        """What the module gives in a run of one around it, where it is called with the arguments of this floor."""
        given = self._given()
        heard: list[list[Tensor | None]] = []

        def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            if not heard and same_leaves(given, args, kwargs):
                heard.append(floats(output))

        handle = self._module.register_forward_hook(hook, with_kwargs=True)
        try:
            yield heard
        finally:
            handle.remove()

    def _given(self) -> Given:
        given = self._arguments()
        assert given is not None, "the module ran on the same arguments before"
        return given

    def _run(self, seed: int, few: bool) -> list[Tensor | None]:
        """What the module gives with inputs and operations nudged, or of its operations only a few."""
        given, noise = self._given(), self.noise
        draws = Draws(seed + _APART)
        for tensor in given.floats if noise.inputs else ():
            _nudge_(tensor, draws)
        operations = OperationNoise(
            seed,
            given.floats,
            self._module,
            state_eps=0.0 if few else noise.state_eps,
            products_only=noise.products_only,
            few=few,
        )
        return outputs_of(self._module, given, operations)

    def _distance(self, again: list[Tensor | None], seed: int) -> float:
        """How far a nudged run lies off, once its results are nudged as well."""
        draws = Draws(seed + 2 * _APART)
        for result in again:
            if result is not None and not self.noise.products_only:
                _nudge_(result, draws)
        return distance(self._output, again, self._call) or 0.0


def _nudge_(tensor: Tensor, draws: Draws) -> None:
    tensor.copy_(multiplied(tensor, draws, torch.finfo(tensor.dtype).eps))


def same_leaves(given: Given, args: Any, kwargs: Any) -> bool:
    """Whether the arguments are, bit for bit, those that the module is called with; only tensors and plain values."""
    pairs = zip(tree_leaves((given.args, given.kwargs)), tree_leaves((args, kwargs)), strict=True)
    return all(_same_leaf(one, other) for one, other in pairs)


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
