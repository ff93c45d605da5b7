"""Passes over all batches: a reference that is kept, a candidate against a kept reference, or a reference in step with
as many candidates as there is room for.

What is kept serves every cell that names the reference. In step nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from sweeper.comparator.comparer import BatchOutputs, Comparer
from sweeper.comparator.forwards import HookedSide, hooked
from sweeper.comparator.hooks import ModuleOutput
from sweeper.comparator.in_turns import InStep, Turn, bytes_a_turn
from sweeper.comparator.side import Side, text_lengths
from sweeper.models.conditions import begin, in_force, key_of

# Of the outputs of a reference that one cell names, on the device. With what waits for a launch (`module_pairs.py`) the
# comparison takes less than 2 GB beyond the models, and that is no more than in step.
KEPT_BYTES = 2**30

Progress = Callable[[int, int], None]
"""Is told how many texts of how many a pass has done, after every batch."""
Batches = Sequence[tuple[int, ...]]
"""The texts of each batch, as they run."""


@dataclass(frozen=True)
class KeptBatch:
    """What one batch gave: its modules' outputs, in order of execution, and the rest."""

    modules: list[tuple[str, Tensor]]
    outputs: BatchOutputs


class DoesNotFit(Exception):
    """What a reference gives is more than may be kept."""


class KeptReference:
    """Keeps the outputs of a reference, batch by batch; copies, so that nothing is changed in place later.

    Args:
        most_bytes: that may be kept.
        tokens: of all batches.

    Attributes:
        batches: what has been kept.
    """

    def __init__(self, most_bytes: int, tokens: int) -> None:
        self.batches: list[KeptBatch] = []
        self._modules: list[tuple[str, Tensor]] = []
        self._most_bytes = most_bytes
        self._bytes = 0
        self._tokens = tokens
        self._tokens_done = 0
        self._tokens_begun = tokens  # with those of the batch that runs

    def begin_batch(self, tokens: int) -> None:
        """Says how many tokens the next batch has: what does not fit shows before its end."""
        self._tokens_begun = self._tokens_done + tokens

    def take(self, output: ModuleOutput) -> None:
        """Keeps one module's output.

        Raises:
            DoesNotFit: now, or in the end, if the other batches give as much a token as this one has so far.
        """
        rows_NF = output.lasting(frozenset())
        self._bytes += rows_NF.nbytes
        if self._bytes * self._tokens > self._most_bytes * self._tokens_begun:
            raise DoesNotFit
        self._modules.append((output.name, rows_NF))

    def end_batch(self, outputs: BatchOutputs, tokens: int) -> None:
        """Keeps the rest of a batch of so many tokens.

        Raises:
            DoesNotFit: in the end, if the other batches give as much a token.
        """
        self._bytes += outputs.output_NF.nbytes + outputs.embedding_SD.nbytes
        self._tokens_done += tokens  # a classifier's output has fewer rows
        if self._bytes * self._tokens > self._most_bytes * self._tokens_done:
            raise DoesNotFit
        self.batches.append(KeptBatch(self._modules, outputs))
        self._modules = []


def keep_reference(
    side: Side, batches: Batches, progress: Progress, *, kept_bytes: int
) -> tuple[KeptReference, HookedSide] | None:
    """Runs a reference and keeps its outputs; None where they are more than `kept_bytes`, which shows early."""
    kept = KeptReference(kept_bytes, sum(text_lengths(side)))
    try:
        with side.conditions(), torch.inference_mode(), hooked(side, kept.take) as running:
            for _, batch in zip(_told(batches, progress), side.in_batches(batches), strict=True):
                tokens = sum(sum(call.forward.lengths) for call in batch)
                kept.begin_batch(tokens)
                kept.end_batch(running.run(batch), tokens)
            return kept, running
    except DoesNotFit:
        return None


def compare_kept(
    kept: KeptReference, side: Side, batches: Batches, comparer: Comparer, progress: Progress
) -> HookedSide:
    """Runs a candidate and compares it with a reference that was kept, which ran the same batches."""
    pairs = comparer.modules
    with side.conditions(), torch.inference_mode(), hooked(side, pairs.take, pairs.steady) as running:
        for texts, calls, reference in zip(
            _told(batches, progress), side.in_batches(batches), kept.batches, strict=True
        ):
            comparer.begin_batch(texts)
            for name, reference_NF in reference.modules:
                pairs.give(name, reference_NF)
            comparer.end_batch(texts, reference.outputs, running.run(calls))
        return running


@dataclass(frozen=True)
class Candidate:
    """A side, and where it is compared with the reference."""

    side: Side
    comparer: Comparer


def compare_in_step(
    reference: Side,
    candidates: Sequence[Candidate],
    batches: Batches,
    progress: Progress,
    *,
    same_conditions: bool = False,
    steady: Container[str] = frozenset(),
    turn_bytes: int = 0,
) -> tuple[HookedSide, list[HookedSide | Exception]]:
    """Runs all, which form the same batches, and compares them; bit for bit what keeping the reference gives.

    A candidate that fails gives its error; the others go on. Not bit for bit under flex_attention: torch compiles for
    the shapes that it has seen, of all sides here.

    Args:
        candidates: no two of them on one model, nor on the reference's.
        same_conditions: the first candidate's are set once, around all; else each turn runs under its own, which
            neighbours share where they are known to be the same.
        steady: of the reference. turn_bytes: 0: what suits the device. Both as in `InStep`.
    """
    sides = [reference, *(candidate.side for candidate in candidates)]
    turns = [] if same_conditions else _turns(sides)
    turn_bytes = turn_bytes or bytes_a_turn(reference.calls[0].forward.flat_N.device.type)
    pairs = [candidate.comparer.modules for candidate in candidates]
    in_step = InStep(pairs, steady=steady, conditions=turns, turn_bytes=turn_bytes)
    with ExitStack() as stack:
        stack.enter_context(sides[1].conditions() if same_conditions else nullcontext())
        stack.enter_context(torch.inference_mode())
        left = stack.enter_context(hooked(reference, in_step.give, steady))
        rights = [
            stack.enter_context(hooked(candidate.side, partial(in_step.take, place), candidate.comparer.modules.steady))
            for place, candidate in enumerate(candidates)
        ]
        ended: list[HookedSide | Exception] = [*rights]
        of_all = [side.in_batches(batches) for side in sides]
        # those that a GPU is busy with longest come last, so that it has work while their batch is brought to its end
        order = sorted(range(len(rights)), key=lambda place: _itemsize(candidates[place].side))
        for texts, first, *others in zip(_told(batches, progress), *of_all, strict=True):
            going = [place for place in order if ended[place] is rights[place]]
            for place in going:
                candidates[place].comparer.begin_batch(texts)
            runs = {place: partial(rights[place].run, others[place]) for place in going}
            in_step.run(partial(left.run, first), runs, partial(_end_batch, candidates, texts, ended))
            if all(isinstance(one, Exception) for one in ended):
                break
        return left, ended


def _end_batch(
    candidates: Sequence[Candidate],
    texts: tuple[int, ...],
    ended: list[HookedSide | Exception],
    place: int,
    given: BatchOutputs,
    taken: BatchOutputs | Exception,
) -> None:
    """Ends a batch of the candidate in that place; if it has an error, that stands in its place from then on."""
    comparer = candidates[place].comparer
    if isinstance(taken, Exception):
        ended[place] = taken
        return
    try:
        comparer.end_batch(texts, given, taken)
    except Exception as error:
        comparer.modules.drop()
        ended[place] = error


def _itemsize(side: Side) -> int:
    """Bytes a number of the model's weights; 0 of one without."""
    return max((parameter.itemsize for parameter in side.model.parameters()), default=0)


def _turns(sides: Sequence[Side]) -> list[Turn]:
    """What is around the turns of each side, for a run that begins; one thing for sides of the same conditions."""
    turns: list[Turn] = []
    known: dict[Hashable, Turn] = {}
    for side in sides:
        begin(side.switches)
        turn, key = partial(in_force, side.switches), key_of(side.switches)
        turns.append(turn if key is None else known.setdefault(key, turn))
    return turns


def _told(batches: Batches, progress: Progress) -> Iterator[tuple[int, ...]]:
    """The texts of each batch; tells `progress` when the next one is asked for."""
    done, texts_in_all = 0, sum(map(len, batches))
    for texts in batches:
        yield texts
        done += len(texts)
        progress(done, texts_in_all)
