"""What of a cell's outputs a recording is compared with: logits, log-probabilities, hidden states, embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from sweeper.comparator.comparer import BatchOutputs
from sweeper.errors import AlignmentError
from sweeper.recordings.log_probabilities import log_probabilities
from sweeper.records.recording import EMBEDDINGS, HIDDEN, LOG_PROBABILITIES, LOGITS, OUTPUT, Recording

_COMPARABLE = {
    "logits": (LOGITS, LOG_PROBABILITIES, EMBEDDINGS),
    "last_hidden_state": (HIDDEN, EMBEDDINGS),
    "output": (OUTPUT, EMBEDDINGS),
}
"""What a cell gives -> what of a recording it can be compared with, what tells the most first."""
_HEADS = {LOGITS: "causal_lm", LOG_PROBABILITIES: "causal_lm", HIDDEN: "base", OUTPUT: "as_saved"}


def quantity_of(recording: Recording, output_kind: str) -> str:
    """The tensor of the recording that a cell with such an output is compared with.

    Raises:
        AlignmentError: there is none; says which head has one.
    """
    found = next((name for name in _COMPARABLE[output_kind] if name in recording.tensors), None)
    if found is None:
        raise AlignmentError(
            f"the recording holds {recording.main}, and this cell gives {output_kind}; "
            f"type checkpoint.head={_HEADS[recording.main]}"
        )
    return found


def rows_of(quantity: str, outputs: BatchOutputs, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """The quantity of a run's outputs: [N, F], of embeddings [S, D]."""
    if quantity == LOG_PROBABILITIES:
        return log_probabilities(outputs.output_NF, token_ids)[:, None]
    return normalize(outputs.embedding_SD.double()) if quantity == EMBEDDINGS else outputs.output_NF


class RecordedRows:
    """The rows of a recording, text by text.

    Args:
        quantity: as in `quantity_of`.
    """

    def __init__(self, recording: Recording, quantity: str) -> None:
        self._recording = recording
        self._lengths = [len(ids) for ids in recording.token_ids]
        self.quantity = quantity

    def main(self, texts: Sequence[int]) -> Tensor:
        """The quantity of these texts, as `rows_of` gives it."""
        rows = self._of(self.quantity, texts)
        if self.quantity == LOG_PROBABILITIES:
            rows = rows[:, None].double()
            rows[self._starts(texts)] = float("nan")  # whatever stands there: nothing comes before a text
        return normalize(rows.double()) if self.quantity == EMBEDDINGS else rows

    def outputs(self, texts: Sequence[int], like: BatchOutputs) -> BatchOutputs:
        """What a batch of these texts gave; NaN in place of embeddings that were not recorded."""
        if EMBEDDINGS in self._recording.tensors:
            embedding_SD = self._of(EMBEDDINGS, texts).to(like.embedding_SD)
        else:
            embedding_SD = torch.full_like(like.embedding_SD, float("nan"))
        return BatchOutputs(self.main(texts), embedding_SD)

    def module(self, name: str, texts: Sequence[int]) -> Tensor:
        """The rows of a module, [N, F]."""
        return self._of(name, texts)

    def log_probabilities(self, texts: Sequence[int]) -> Tensor | None:
        """[N], of logits where they were not recorded themselves; None without either."""
        ids = [self._recording.token_ids[text] for text in texts]
        if LOG_PROBABILITIES in self._recording.tensors:
            found = self._of(LOG_PROBABILITIES, texts).double()
            found[self._starts(texts)] = float("nan")
            return found
        return log_probabilities(self._of(LOGITS, texts), ids) if LOGITS in self._recording.tensors else None

    def _starts(self, texts: Sequence[int]) -> list[int]:
        starts, row = [], 0
        for text in texts:
            starts.append(row)
            row += self._lengths[text]
        return starts

    def _of(self, name: str, texts: Sequence[int]) -> Tensor:
        tensor = self._recording.tensors[name]
        a_row_a_text = name == EMBEDDINGS or len(tensor) != sum(self._lengths)
        pieces = tensor.split([1] * len(self._lengths) if a_row_a_text else self._lengths)
        return torch.cat([pieces[text] for text in texts])
