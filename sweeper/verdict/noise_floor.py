"""The noise floor, measured: how far a model's outputs move under changes that alter no meaning.

Every module's result is nudged by up to one unit in the last place, at random: Monte Carlo arithmetic (Parker 1997,
"Monte Carlo Arithmetic: exploiting randomness in floating-point arithmetic") with the module as the operation. Beside
it the batch is run in another order and row by row, which changes the kernels' shapes and nothing else.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.comparator.calling import Listener
from sweeper.comparator.hooks import hookable
from sweeper.comparator.observation import Observation, in_pairs, observe, observe_within
from sweeper.comparator.side import Call, Outputs, Side, run, uncompiled_side
from sweeper.devices import suppressed
from sweeper.models.trees import tensors_of_tree
from sweeper.verdict.draws import Draws
from sweeper.verdict.first_divergence import outputs_rel_l2, rel_l2
from sweeper.verdict.monte_carlo import in_pieces, stored_state

_NUDGED = "_nudged"  # of tensors that are the result of a nudge


@dataclass
class Floor:
    """What one side's outputs do under changes without meaning.

    Attributes:
        nudged: rel_l2 of the outputs, one a seed.
        rebatched: the same for other batch shapes, by what was done; empty where there is one row only.
        modules: rel_l2 of every module under nudges, one a seed.
    """

    nudged: list[float] = field(default_factory=list)
    rebatched: dict[str, float] = field(default_factory=dict)
    modules: dict[str, list[float]] = field(default_factory=dict)

    @property
    def level(self) -> float:
        """The root mean square of the nudged samples, or the largest effect of another batch shape if that is more."""
        return max([rms(self.nudged), *self.rebatched.values()])

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.nudged), max(self.nudged)

    def module(self, name: str) -> float:
        """Level of one module; NaN where it was not measured."""
        return rms(self.modules[name]) if self.modules.get(name) else math.nan


def rms(samples: Sequence[float]) -> float:
    """The root mean square."""
    return math.sqrt(sum(sample**2 for sample in samples) / len(samples))


_SEEDS = 4
OUTPUT_SEEDS = 3


def measure_floor(side: Side, base: Observation | None = None, *, seeds: int = _SEEDS) -> Floor:
    """Runs a side again and again with changes that alter no meaning.

    Args:
        base: its own run without any; taken where it is not given.
        seeds: how many nudged runs.
    """
    written = uncompiled_side(side)
    base = observe(written) if base is None or written is not side else base
    side = written
    floor = Floor()
    for seed in range(seeds):
        again = observe_within(functools.partial(_nudged_side, side, seed))
        floor.nudged.append(outputs_rel_l2(base.outputs, again.outputs, discrete=False))
        for name, before, after in in_pairs(base, again):
            if before is not None and after is not None:
                floor.modules.setdefault(name, []).append(rel_l2(torch.cat(before.outputs), torch.cat(after.outputs)))
    with suppressed(Exception):  # whatever a foreign model raises: it may be made for one batch size only
        for name, outputs in _rebatched(side):
            floor.rebatched[name] = outputs_rel_l2(base.outputs, outputs, discrete=False)
    return floor


def raise_floor(floor: Floor, side: Side, base: Outputs, enough: float, *, seeds: int = _SEEDS) -> bool:
    """Adds runs to a floor, of the outputs alone, until it is sure to reach `enough`; says whether it does.

    Args:
        floor: of the same side, as far as it was measured.
        base: the outputs of the side's own run.
    """
    while not (reached := at_least(floor, seeds) >= enough) and len(floor.nudged) < seeds:
        floor.nudged.append(output_floor_sample(side, base, seed=len(floor.nudged)))
    if not reached and not floor.rebatched:
        with suppressed(RuntimeError, IndexError, ValueError):  # a model may be made for one batch size only
            for name, outputs in _rebatched(side):
                floor.rebatched[name] = outputs_rel_l2(base, outputs, discrete=False)
    return reached or floor.level >= enough


def at_least(floor: Floor, seeds: int = _SEEDS) -> float:
    """What the level comes to at least, whatever the runs give that are still to be made."""
    return max([math.sqrt(sum(sample**2 for sample in floor.nudged) / seeds), *floor.rebatched.values()])


def output_floor(side: Side, base: Outputs, *, seeds: int = OUTPUT_SEEDS) -> float:
    """The level of nudges on the outputs alone: all that a replay's collapse is judged by."""
    return rms([output_floor_sample(side, base, seed) for seed in range(seeds)])


def output_floor_sample(
    side: Side, base: Outputs, seed: int, *, sure: bool = False, listener: Listener | None = None
) -> float:
    """How far the nudges of one seed move the outputs.

    Args:
        sure: as in `nudged`.
        listener: as in `run`; is told of what was made of each result.
    """
    with nudged(side.model, seed, sure=sure):
        return outputs_rel_l2(base, run(side, listener), discrete=False)


@contextlib.contextmanager
def _nudged_side(side: Side, seed: int) -> Iterator[Side]:
    with nudged(side.model, seed):
        yield side


@contextlib.contextmanager
def nudged(model: nn.Module, seed: int, *, sure: bool = False) -> Iterator[None]:
    """Multiplies every module's result by 1 + eps u, u uniform in [-1, 1], and rounds to its dtype again.

    Args:
        sure: only what is sure to be rounded, so that nothing hides behind it: the results of modules that hold
            parameters or stored buffers and are given real numbers, each number once. Others may be exact: positions, a
            mask, what a module is given and hands on.
    """
    draws = Draws(seed)

    def piece(value: Tensor, factor: Tensor) -> Tensor:  # in place: of logits, each further copy counts
        return factor.mul_(value).to(value.dtype)

    def nudge(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or (sure and hasattr(value, _NUDGED)):
            return value
        result = in_pieces(piece, value, draws, torch.finfo(value.dtype).eps, torch.float64)
        setattr(result, _NUDGED, True)
        return result

    def hook(_module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if sure and not any(map(torch.is_floating_point, tensors_of_tree((args, kwargs)))):
            return None
        if isinstance(output, Tensor):
            return nudge(output)
        return tuple(map(nudge, output)) if type(output) is tuple else None

    # a model that is a graph, or one module, has no others that are called
    inner = [module for name, module in hookable(model) if name and not isinstance(module, torch.jit.ScriptModule)]
    modules = inner or [module for name, module in hookable(model) if not name]
    if sure:
        modules = [module for module in modules if any(map(torch.is_floating_point, stored_state(module)))]
    # prepended: whoever listens to a module sees what was made of its result
    handles = [module.register_forward_hook(hook, prepend=True, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rebatched(side: Side) -> Iterator[tuple[str, Outputs]]:
    """The rows of each call in reverse order, and one by one; in the order of the original all the same."""
    if not all(call.has_rows for call in side.calls):
        return
    for name, reverse in (("rows in reverse order", True), ("rows one by one", False)):
        if outputs := _run_in_groups(side, reverse=reverse):
            yield name, outputs


def _run_in_groups(side: Side, *, reverse: bool) -> Outputs:
    """Reversed: one call with its rows from last to first. Else a call a row."""
    pieces: dict[str, list[Tensor]] = {}
    for call in side.calls:
        B = call.forward.shape[0]
        groups = [list(range(B))[::-1]] if reverse else [[row] for row in range(B)]
        outputs = run(replace(side, calls=tuple(call.of_rows(group) for group in groups)))
        for name, tensor in outputs.items():
            if outputs.follows_rows(name):
                pieces.setdefault(name, []).append(_in_order(tensor, call, groups))
    return {name: torch.cat(tensors) for name, tensors in pieces.items()}


def _in_order(tensor: Tensor, call: Call, groups: list[list[int]]) -> Tensor:
    """Rows that came group by group, back in the order of the call."""
    order = [row for group in groups for row in group]
    if len(tensor) == len(call.forward.flat_N):
        row_N = call.forward.row_N
        came = torch.cat([(row_N == row).nonzero()[:, 0] for row in order])
    else:
        came = torch.tensor(order, device=tensor.device)
    return tensor[came.argsort()]
