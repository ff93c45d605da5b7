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
    modules = _RecordedModules(recording, rows, comparer)
    has_logits = rows.quantity in (LOGITS, LOG_PROBABILITIES)
    pairs: list[tuple[Tensor, Tensor]] = []
    ids: list[list[int]] = []
    with side.conditions(), torch.inference_mode(), hooked(side, modules.take) as running:
        for texts, calls in zip(batches, side.in_batches(batches), strict=True):
            modules.begin(texts)
            outputs = running.run(calls)
            some = [recording.token_ids[text] for text in texts]
            if has_logits and (some_N := rows.log_probabilities(texts)) is not None:
                pairs.append((some_N.cpu(), log_probabilities(outputs.output_NF, some).cpu()))
                ids += some
            candidate = BatchOutputs(rows_of(rows.quantity, outputs, some), outputs.embedding_SD)
            comparer.end_batch(texts, rows.outputs(texts, outputs), candidate)
            progress(modules.texts_done, len(recording.token_ids))
    found = None
    if pairs:
        recorded_N, own_N = (torch.cat([pair[place] for pair in pairs]) for place in (0, 1))
        found = ratios(recorded_N, own_N, ids)
    return Ran(running, found, modules.unaligned())


class _RecordedModules:
    """The modules of a recording meet those of a run, batch by batch. One that was recorded of some texts does not."""

    def __init__(self, recording: Recording, rows: RecordedRows, comparer: Comparer) -> None:
        N = sum(map(len, recording.token_ids))
        named = {name: tensor for name, tensor in recording.tensors.items() if name.startswith(MODULE)}
        self._recorded = {name.removeprefix(MODULE) for name, tensor in named.items() if len(tensor) == N}
        self._short = [name.removeprefix(MODULE) for name, tensor in named.items() if len(tensor) < N]
        self._rows, self._comparer = rows, comparer
        self._given: set[str] = set()  # of a batch
        self._texts: tuple[int, ...] = ()
        self.texts_done = 0

    def begin(self, texts: tuple[int, ...]) -> None:
        """A batch of these texts is about to run."""
        self._given.clear()
        self._texts = texts
        self.texts_done += len(texts)

    def take(self, output: ModuleOutput) -> None:
        if output.name not in self._recorded:
            return
        if output.name not in self._given:
            self._given.add(output.name)
            self._comparer.modules.give(output.name, self._rows.module(f"{MODULE}{output.name}", self._texts))
        self._comparer.modules.take(output)

    def unaligned(self) -> dict[str, str]:
        """What was recorded and could not be compared, and why."""
        missing = dict.fromkeys(sorted(self._recorded - self._given), "recorded, and not among this cell's modules")
        return missing | dict.fromkeys(self._short, "recorded of the first texts alone")
