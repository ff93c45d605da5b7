"""A cell that is compared with a recording in place of a reference: run, measured, judged by its own errors."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import nn

from sweeper.comparator.comparer import Comparer, Figures
from sweeper.comparator.forwards import HookedSide, side_of
from sweeper.config import Cell
from sweeper.devices import out_of_memory
from sweeper.errors import AlignmentError
from sweeper.inputs.batching import forwards_of
from sweeper.recordings.comparing import Ran, compare_recorded
from sweeper.recordings.counterfactuals import Base, exact_outputs, outputs_of
from sweeper.recordings.judging import Judged, judge_recorded, verdict_on
from sweeper.recordings.quantities import RecordedRows, quantity_of
from sweeper.records.recording import LOGITS, Recording
from sweeper.records.verdict import VerdictRecord

_JUDGED_TOKENS = 4096


class RecordedReference:
    """A recording, for the cells that are compared with it.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recording = Recording.read(path)

    def compare(
        self,
        cell: Cell,
        model: nn.Module,
        output_kind: str,
        token_ids: list[list[int]],
        make_comparer: Callable[[bool], Comparer],
        progress: Callable[[int, int], None],
    ) -> tuple[HookedSide, Figures, Ran, RecordedRows]:
        """Runs a cell on the recording's texts and measures it.

        Args:
            output_kind: of the cell.
            make_comparer: told whether the outputs are logits.

        Raises:
            AlignmentError: the recording has nothing that this cell gives, or other texts.
        """
        if token_ids != self.recording.token_ids:
            raise AlignmentError("the recording has other token ids than the cell read: nothing can be aligned")
        rows = RecordedRows(self.recording, quantity_of(self.recording, output_kind))
        grouped = forwards_of(cell, token_ids)
        side = side_of(cell, model, token_ids, grouped)
        comparer = make_comparer(rows.quantity == LOGITS)
        ran = compare_recorded(self.recording, rows, side, grouped, comparer, progress)
        return ran.side, comparer.finish(), ran, rows

    def first_divergence(self, figures: Figures) -> str | None:
        """The first recorded module that differs; `output` where only that does, or no module was recorded."""
        return figures.first_divergence or ("output" if figures.output.equal_fraction < 1 else None)

    def judge(
        self,
        cell: Cell,
        model: nn.Module,
        folder: Path | None,
        rows: RecordedRows,
        ran: Ran,
        figures: Figures,
        cell_id: str,
    ) -> VerdictRecord | str:
        """The verdict on the first texts, or on those of another batch where only there something differs; else why
        memory did not suffice. What else goes wrong in float64 is in it."""
        texts = _judged_texts(self.recording.token_ids, cell, figures)
        ids = [self.recording.token_ids[text] for text in texts]
        dtype = self.recording.about.get("dtype")
        try:
            side = side_of(cell, model, ids, [range(len(ids))])
            base = Base(
                cell=cell,
                model=model,
                folder=folder,
                token_ids=ids,
                quantity=rows.quantity,
                recorded=rows.main(texts),
                own=outputs_of(side),
                exact=exact_outputs(side),
            )
            judged = judge_recorded(
                base,
                ran.ratios,
                dtype if isinstance(dtype, str) else None,
                others_differ=figures.output.equal_fraction < 1,
            )
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            if out_of_memory(error):
                return "memory ran out; type fewer or shorter texts in the recording, or use a machine with more"
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            judged = Judged(
                quantity=rows.quantity, found=None, error=line, ratios=ran.ratios, own_dtype=str(cell.dtype)
            )
        return verdict_on(judged, texts, cell_id, self.first_divergence(figures))


def _judged_texts(token_ids: Sequence[Sequence[int]], cell: Cell, figures: Figures) -> tuple[int, ...]:
    """Texts of the first batch; where none of them differs, of the batch of the text that moved most."""
    first = _few(range(min(cell.inputs.batch_size, len(token_ids))), token_ids)
    differing = [text for text in figures.texts if text.output_equal_fraction < 1]
    if not differing or any(text.text in first for text in differing):
        return first
    most = max(differing, key=lambda text: text.output_max_abs).text
    batch = _few(next(batch for batch in forwards_of(cell, token_ids) if most in batch), token_ids)
    return batch if most in batch else (most,)


def _few(texts: Sequence[int], token_ids: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The first of these texts, as far as they have few tokens; at least one."""
    few, tokens = list[int](), 0
    for text in texts:
        tokens += len(token_ids[text])
        if few and tokens > _JUDGED_TOKENS:
            break
        few.append(text)
    return tuple(few)
