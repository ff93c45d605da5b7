"""Passes over all batches: a reference that is recorded, a candidate against a recording, or both in step.

A recording serves every cell that names the reference. In step nothing is kept; the reference runs again for each cell.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Container, Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import nn

from sweeper.comparator.comparer import Comparer, DoesNotFit, Recorder
from sweeper.comparator.forwards import BatchesRun, hooked
from sweeper.comparator.in_turns import InStep, Turn, bytes_a_turn
from sweeper.config import Cell
from sweeper.inputs.texts import batches
from sweeper.models.conditions import begin, conditions, in_force, same_conditions, switches

# Of the outputs of a reference that one cell names, on the device. With what waits for a launch (`pairs.py`) the
# comparison takes less than 2 GB beyond the models, and that is no more than in step.
KEPT_BYTES = 2**30

Progress = Callable[[int, int], None]
"""Is told how many texts of how many a pass has done, after every batch."""


def record_reference(
    cell: Cell, model: nn.Module, token_ids: list[list[int]], progress: Progress, *, kept_bytes: int
) -> tuple[Recorder, BatchesRun] | None:
    """Runs a reference and keeps its outputs; None where they are more than `kept_bytes`, which shows early."""
    recorder = Recorder(kept_bytes, sum(map(len, token_ids)))
    try:
        with conditions(cell), torch.inference_mode(), hooked(cell, model, token_ids, recorder.take) as running:
            for texts in _batches(cell, token_ids, progress):
                recorder.end_batch(running.run(texts))
            return recorder, running.result()
    except DoesNotFit:
        return None


def compare_recorded(
    recorder: Recorder,
    cell: Cell,
    model: nn.Module,
    token_ids: list[list[int]],
    comparer: Comparer,
    progress: Progress,
    *,
    around_first: AbstractContextManager[object] | None = None,
) -> BatchesRun:
    """Runs a candidate and compares it with a recorded reference, which ran the same batches.

    `around_first` is entered for the run of the first batch.
    """
    with conditions(cell), torch.inference_mode(), hooked(cell, model, token_ids, comparer.modules.take) as running:
        for texts, recorded in zip(_batches(cell, token_ids, progress), recorder.batches, strict=True):
            for name, reference_NF in recorded.modules:
                comparer.modules.give(name, reference_NF)
            with around_first or nullcontext():
                outputs = running.run(texts)
            around_first = None
            comparer.end_batch(texts, recorded.outputs, outputs)
        return running.result()


def compare_in_step(
    reference: tuple[Cell, nn.Module],
    candidate: tuple[Cell, nn.Module],
    token_ids: list[list[int]],
    comparer: Comparer,
    progress: Progress,
    *,
    steady: Container[str] = frozenset(),
    turn_bytes: int = 0,
) -> tuple[BatchesRun, BatchesRun]:
    """Runs both, which form the same batches, and compares them; bit for bit what a recording gives.

    `steady`, of the reference, and `turn_bytes` as in `InStep`, 0: what suits the device. Not bit for bit under
    flex_attention: torch compiles for the shapes that it has seen, of both sides here.
    """
    around, turns = _conditions(reference[0], candidate[0])
    turn_bytes = turn_bytes or bytes_a_turn(candidate[0].device)
    in_step = InStep(comparer.modules, steady=steady, conditions=turns, turn_bytes=turn_bytes)
    with (
        around,
        torch.inference_mode(),
        hooked(*reference, token_ids, in_step.give) as left,
        hooked(*candidate, token_ids, in_step.take) as right,
    ):
        for texts in _batches(candidate[0], token_ids, progress):
            outputs = in_step.run(functools.partial(left.run, texts), functools.partial(right.run, texts))
            comparer.end_batch(texts, *outputs)
        return left.result(), right.result()


def _conditions(reference: Cell, candidate: Cell) -> tuple[AbstractContextManager[object], tuple[Turn, Turn]]:
    """What is around both cells, and what around the turns of each: there, only what they do not share."""
    if same_conditions(reference, candidate):
        return conditions(candidate), (nullcontext, nullcontext)
    left, right = switches(reference), switches(candidate)
    begin(left)
    begin(right)
    return nullcontext(), (functools.partial(in_force, left), functools.partial(in_force, right))


def _batches(cell: Cell, token_ids: list[list[int]], progress: Progress) -> Iterator[tuple[int, ...]]:
    """The texts of each batch; tells `progress` when the next one is asked for."""
    done = 0
    for texts in batches(token_ids, cell.inputs.batch_size):
        yield texts
        done += len(texts)
        progress(done, len(token_ids))
