"""Passes over all batches: a reference that is recorded, and a candidate that is compared with a recording."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from sweeper.compare import Comparer, DoesNotFit, Recorder
from sweeper.config import Cell
from sweeper.forwards import BatchesRun, conditions, hooked
from sweeper.inputs import batches

# Of a reference's outputs, on the device. With what waits for a launch (`pairs.py`) the comparison takes less than 2 GB
# beyond the models; a reference that gives more runs again beside each of its candidates.
KEPT_BYTES = 2**30

Progress = Callable[[int, int], None]
"""Is told how many texts of how many a pass has done, after every batch."""


def record_reference(
    cell: Cell, model: nn.Module, token_ids: list[list[int]], progress: Progress, *, kept_bytes: int = KEPT_BYTES
) -> tuple[Recorder, BatchesRun] | None:
    """Runs a reference and keeps its outputs; None where they are more than `kept_bytes`, which shows early."""
    recorder = Recorder(kept_bytes, sum(map(len, token_ids)))
    done = 0
    try:
        with conditions(cell), torch.inference_mode(), hooked(cell, model, token_ids, recorder.take) as running:
            for texts in batches(token_ids, cell.inputs.batch_size):
                recorder.end_batch(running.run(texts))
                done += len(texts)
                progress(done, len(token_ids))
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
) -> BatchesRun:
    """Runs a candidate and compares it with a recorded reference, which ran the same batches."""
    done = 0
    with conditions(cell), torch.inference_mode(), hooked(cell, model, token_ids, comparer.modules.take) as running:
        for texts, recorded in zip(batches(token_ids, cell.inputs.batch_size), recorder.batches, strict=True):
            for name, reference_NF in recorded.modules:
                comparer.modules.give(name, reference_NF)
            comparer.end_batch(texts, recorded.outputs, running.run(texts))
            done += len(texts)
            progress(done, len(token_ids))
        return running.result()
