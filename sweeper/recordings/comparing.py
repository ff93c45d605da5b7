"""A cell that is run and compared with a recording: the outputs, and the modules that were recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sweeper.comparator.comparer import BatchOutputs, Comparer
from sweeper.comparator.forwards import HookedSide, hooked
from sweeper.comparator.hooks import ModuleOutput
from sweeper.comparator.side import Side
from sweeper.recordings.log_probabilities import Ratios, log_probabilities, ratios
from sweeper.recordings.quantities import RecordedRows, rows_of
from sweeper.records.recording import LOG_PROBABILITIES, LOGITS, MODULE, Recording

Batches = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class Ran:
    """What the run left behind.

    Attributes:
        side: as it ran.
        ratios: of the log-probabilities of all texts; None where either has none.
        unaligned: modules that were recorded and could not be compared, and why.
    """

    side: HookedSide
    ratios: Ratios | None
    unaligned: dict[str, str]


def compare_recorded(
    recording: Recording,
    rows: RecordedRows,
    side: Side,
    batches: Batches,
    comparer: Comparer,
    progress: Callable[[int, int], None],
) -> Ran:
    """Runs a candidate and compares it with what was recorded of the same texts.

    Args:
        rows: of the recording.
        batches: the texts of each; together all of the recording's.
        comparer: takes what both sides gave.
        progress: is told how many texts of how many have run.
    """
    N = sum(map(len, recording.token_ids))
    named = {name: tensor for name, tensor in recording.tensors.items() if name.startswith(MODULE)}
    recorded = {name.removeprefix(MODULE) for name, tensor in named.items() if len(tensor) == N}
    has_logits = rows.quantity in (LOGITS, LOG_PROBABILITIES)
    given: set[str] = set()  # of a batch
    pairs: list[tuple[Tensor, Tensor]] = []
    ids: list[list[int]] = []
    texts: tuple[int, ...] = ()

    def take(output: ModuleOutput) -> None:
        if output.name not in recorded:
            return
        if output.name not in given:
            given.add(output.name)
            comparer.modules.give(output.name, rows.module(f"{MODULE}{output.name}", texts))
        comparer.modules.take(output)

    done = 0
    with side.conditions(), torch.inference_mode(), hooked(side, take) as running:
        for texts, calls in zip(batches, side.in_batches(batches), strict=True):
            given.clear()
            outputs = running.run(calls)
            some = [recording.token_ids[text] for text in texts]
            if has_logits and (some_N := rows.log_probabilities(texts)) is not None:
                pairs.append((some_N.cpu(), log_probabilities(outputs.output_NF, some).cpu()))
                ids += some
            candidate = BatchOutputs(rows_of(rows.quantity, outputs, some), outputs.embedding_SD)
            comparer.end_batch(texts, rows.outputs(texts, outputs), candidate)
            done += len(texts)
            progress(done, len(recording.token_ids))
    found = None
    if pairs:
        recorded_N, own_N = (torch.cat([pair[place] for pair in pairs]) for place in (0, 1))
        found = ratios(recorded_N, own_N, ids)
    missing = dict.fromkeys(sorted(recorded - given), "recorded, and not among this cell's modules")
    missing |= {
        name.removeprefix(MODULE): "recorded of the first texts alone" for name in named if len(named[name]) < N
    }
    return Ran(running, found, missing)
