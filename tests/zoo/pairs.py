"""The zoo: pairs of small models with a known answer, the examination of `compare_models`.

The pairs were written beside the first version of the verdict, without sight of its code or of what it says of any.
That version was committed three minutes before them, so dates do not show that its thresholds came later. `tuning`
holds the half that may be looked at while thresholds are chosen, `held_out` the half that may not; which pair went
where was drawn by `split`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

# Tensors by the names of the arguments; a value may also be a number, or a dictionary or list of tensors.
Inputs = dict[str, Any]

HARMLESS = frozenset({"identical", "rounding"})
IDENTICAL = frozenset({"identical"})
POLICY = frozenset({"policy"})
SEMANTIC = frozenset({"semantic"})
# A changed parameter, or a table that follows from a changed argument, is another function (semantic) and also state
# that was changed and can be put back (policy).
STATE = POLICY | SEMANTIC

SPLIT_SEED = 2024


@dataclass(frozen=True, kw_only=True)
class PairModels:
    """What a pair hands to `compare_models`.

    Real tokens are those of `attention_mask` (all where there is none), in row-major order: the same order padded on
    either side and packed. A candidate without a mask whose shape is the reference's has the reference's real tokens.
    Where a decoder has inputs of its own, its outputs and its mask count. Several calls are a list of inputs.
    """

    reference: nn.Module
    candidate: nn.Module
    inputs: Inputs | list[Inputs]
    candidate_inputs: Inputs | list[Inputs] | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A pair of models whose answer is known.

    Attributes:
        name: `kind/model_dtype`; a kind has as many pairs in either half.
        answer: whether a user must act.
        allowed: the verdict kinds that are right.
        cause: words of which one must be in the sentence that `explain` gives, in lower case; empty where harmless.
        dtype: that the candidate computes in.
        build: makes both models and their inputs, the same ones on every call.
        needs: packages without which the pair cannot be built, for `pytest.importorskip`.
    """

    name: str
    answer: Literal["harmless", "harmful"]
    allowed: frozenset[str]
    cause: tuple[str, ...]
    dtype: str
    build: Callable[[], PairModels]
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return self.name.partition("/")[0]


def harmless(
    name: str, *, allowed: frozenset[str] = HARMLESS, needs: tuple[str, ...] = ()
) -> Callable[[Callable[[], PairModels]], Pair]:
    """Make the decorated builder a pair that a user may ignore; the dtype is the last word of its name."""
    dtype = name.rpartition("_")[2]
    return lambda build: Pair(
        name=name, answer="harmless", allowed=allowed, cause=(), dtype=dtype, build=build, needs=needs
    )


def harmful(
    name: str, *, allowed: frozenset[str], cause: tuple[str, ...], needs: tuple[str, ...] = ()
) -> Callable[[Callable[[], PairModels]], Pair]:
    """Make the decorated builder a pair that a user must act on; the dtype is the last word of its name."""
    dtype = name.rpartition("_")[2]
    return lambda build: Pair(
        name=name, answer="harmful", allowed=allowed, cause=cause, dtype=dtype, build=build, needs=needs
    )


def edited(reference: nn.Module, inputs: Inputs | list[Inputs], edit: Callable[[Any], object]) -> PairModels:
    """A pair whose candidate is a copy of the reference with one edit."""
    candidate = deepcopy(reference)
    with torch.no_grad():
        edit(candidate)
    return PairModels(reference=reference, candidate=candidate, inputs=inputs)


def split(names: Iterable[str], seed: int = SPLIT_SEED) -> tuple[set[str], set[str]]:
    """Draw the tuning half and the held-out half: every kind is shuffled and dealt in two, so both hold every kind."""
    rng = random.Random(seed)
    kinds: dict[str, list[str]] = {}
    for name in sorted(names):
        kinds.setdefault(name.partition("/")[0], []).append(name)
    halves: tuple[set[str], set[str]] = set(), set()
    for members in kinds.values():
        rng.shuffle(members)
        halves[0].update(members[::2])
        halves[1].update(members[1::2])
    return halves
