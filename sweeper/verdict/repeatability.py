"""Whether a side gives the same output twice, and who is to blame where it does not: a precondition of every verdict.

The two runs begin with different random states, so that dropout or a random mask shows. Randomness is never noise.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from sweeper.comparator.observation import observe
from sweeper.comparator.outputs import same_bits
from sweeper.comparator.side import Outputs, Side, run, text_lengths
from sweeper.devices import out_of_memory
from sweeper.verdict.first_divergence import FirstDivergence, first_divergence, outputs_rel_l2, trace
from sweeper.verdict.float64_replay import replayed

SIDES = ("reference", "candidate")
# A GPU's atomic additions give other bits each time. In float64 that is below 1e-12, and what is drawn at random stays.
REPEATS_WITHIN = 2.0**-30


@dataclass(frozen=True, kw_only=True)
class Random:
    """A side that does not give the same output twice.

    Attributes:
        side: which one.
        first: the first module whose output does not repeat though its input does; None where no module shows it.
        training: how many modules are in training mode. settles: with all of them in eval mode, it repeats.
    """

    side: str
    first: FirstDivergence | None
    training: int
    settles: bool

    def __str__(self) -> str:
        draws = f"the {self.side} is random: {self._place} does not give the same twice"
        if self.settles:
            return f"{draws}, with {self.training} modules in training mode"
        return f"{draws}, not in eval mode either"

    @property
    def _place(self) -> str:
        if self.first is None:
            return "its own forward"
        return self.first.module if self.first.place == "output" else f"what {self.first.module} is given"


def random_side(side: Side, name: str, outputs: Outputs) -> Random | None:
    """What is random about a side; None where it repeats.

    Args:
        name: `reference` or `candidate`.
        outputs: of a run of it.
    """
    other = replace(side, seed=side.seed + 1)
    if _repeats(side, outputs, run(other)):
        return None
    training = training_modules(side.model)
    with evaluating(training):
        settles = bool(training) and _repeats(side, run(side), run(other))
    with evaluating(() if settles else training):
        first = first_divergence(trace(observe(side), other, own=False, until=0.0).modules, text_lengths(side))
    return Random(side=name, first=first, training=len(training), settles=settles)


def _repeats(side: Side, first: Outputs, second: Outputs) -> bool:
    """Whether nothing is drawn. Two orders of one sum are no randomness: in float64 next to nothing is left of them."""
    if same_outputs(first, second):
        return True
    try:
        with replayed(side) as (lifted, _):
            return outputs_rel_l2(run(lifted), run(replace(lifted, seed=lifted.seed + 1))) <= REPEATS_WITHIN
    except Exception as error:  # whatever a foreign model raises in float64
        if out_of_memory(error):
            raise
        return False


def same_outputs(first: Outputs, second: Outputs) -> bool:
    """Whether two runs of a side gave the same bits."""
    return all(same_bits(first[name], second[name]) for name in first)


def training_modules(model: nn.Module) -> list[nn.Module]:
    """Those in training mode."""
    return [module for module in model.modules() if module.training]


@contextlib.contextmanager
def settled(reference: Side, candidate: Side, found: Sequence[Random]) -> Iterator[None]:
    """Eval mode for the sides that repeat in it."""
    settle = {random.side for random in found if random.settles}
    sides = dict(zip(SIDES, (reference, candidate), strict=True))
    with evaluating([module for name in settle for module in training_modules(sides[name].model)]):
        yield


@contextlib.contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode for these modules, and training mode again."""
    modules = list(modules)
    try:
        for module in modules:
            module.training = False
        yield
    finally:
        for module in modules:
            module.training = True
