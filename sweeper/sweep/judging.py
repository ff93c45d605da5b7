"""The verdict of a cell: its two sides with all that the cells ask for, judged on the texts that tell the most."""

from __future__ import annotations

import contextlib
import hashlib
import math
import traceback
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor, nn

from sweeper.comparator.comparer import Figures
from sweeper.comparator.leaves import leaves
from sweeper.devices import out_of_memory
from sweeper.inputs.calls import Call, tensors_in
from sweeper.models import axes
from sweeper.models.fingerprint import fingerprint
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import TextFigures
from sweeper.records.verdict import CauseRecord, EvidenceRecord, VerdictRecord
from sweeper.verdict.likely_cause import likely_cause, pointed_at
from sweeper.verdict.rules import Kind

if TYPE_CHECKING:
    from sweeper.verdict.comparison import Comparison


_MOST_TEXTS = 64
"""Judged at once, if that tells: where a batch is sorted, all texts may be in one group. Every size of the axis `batch`
divides it, so that sorted forwards stay whole."""


def telling_texts(texts: Sequence[TextFigures], batches: Sequence[Sequence[int]]) -> list[tuple[int, ...]]:
    """What to judge on until the sides differ: two texts, the first batch, the text that moved most, its whole batch.

    Many runs of all texts would cost more than they tell. The two are the first one and the longest one of another
    length: two texts of one length have no pads between them, so that layouts and poolings agree. Which two depends on
    lengths alone, so that all candidates of a reference are judged on the same, and share its runs. But a difference
    can need the shape of the whole batch, or lie in a single text.
    """
    others = [text for text in texts[1:] if text.tokens != texts[0].tokens] or texts[1:]
    longest = sorted(others, key=lambda text: -text.tokens)[:1]
    most = max(texts, key=_moved).text
    of_most = _around(most, next(batch for batch in batches if most in batch), texts)
    sets = [(0, *(text.text for text in longest)), tuple(batches[0][:_MOST_TEXTS]), (0, most), of_most]
    return [few for place, few in enumerate(sets) if not any(set(few) <= set(earlier) for earlier in sets[:place])]


def _around(most: int, batch: Sequence[int], texts: Sequence[TextFigures]) -> tuple[int, ...]:
    """The batch of a text; of one of too many, those near it in length, which share its forward where it is sorted."""
    if len(batch) <= _MOST_TEXTS:
        return tuple(batch)
    tokens = {text.text: text.tokens for text in texts}
    order = sorted(batch, key=tokens.__getitem__, reverse=True)  # the order of `forwards_of`
    start = order.index(most) // _MOST_TEXTS * _MOST_TEXTS
    return tuple(sorted(order[start : start + _MOST_TEXTS]))


def shortest(texts: Sequence[TextFigures], among: Sequence[int]) -> tuple[int, ...]:
    """The one text that takes the least memory to judge on, of those that differ where some do."""
    chosen = [text for text in texts if text.text in among]
    differing = [text for text in chosen if _moved(text) > 0] or chosen
    return (min(differing, key=lambda text: text.tokens).text,)


def _moved(figures: TextFigures) -> float:
    """How far a text's output moved; nothing tells more than one that is NaN."""
    return math.inf if math.isnan(figures.output_max_abs) else figures.output_max_abs


def nothing_differs(figures: Figures) -> bool:
    """Every compared tensor has the same numbers, and every text the same embedding: no run is needed to judge that."""
    same_embeddings = all(text.embedding_max_abs == 0 for text in figures.texts)
    return figures.output.equal_fraction == 1 and figures.first_divergence is None and same_embeddings


def identical_record(figures: Figures) -> VerdictRecord:
    """The verdict of a cell in which nothing differs."""
    texts = tuple(range(len(figures.texts)))
    return VerdictRecord(kind=Kind.IDENTICAL, reason="every compared tensor has the same values", texts=texts)


class Alike:
    """The verdicts of a sweep, by all that decides one."""

    def __init__(self) -> None:
        self._known: dict[Hashable, VerdictRecord] = {}

    def verdict(self, bits: Hashable) -> VerdictRecord | None:
        """That of an earlier cell that is the same bit for bit; None where there was none."""
        return None if bits is None else self._known.get(bits)

    def keep(self, bits: Hashable, cell_id: str, verdict: VerdictRecord | None) -> None:
        """The verdict for later cells; not where judging failed."""
        if bits is not None and verdict is not None and (verdict.evidence or verdict.kind is Kind.IDENTICAL):
            self._known.setdefault(bits, verdict.model_copy(update={"same_as": cell_id}))


@contextlib.contextmanager
def first_outputs(model: nn.Module, *, wanted: bool) -> Iterator[list[str]]:
    """Takes the fingerprint of all leaves of the model's first output, caches too; of none unless `wanted`."""
    taken: list[str] = []

    def hook(_module: nn.Module, _inputs: object, output: object) -> None:
        if not taken:
            known = [leaf for leaf in leaves(output) if isinstance(leaf.value, Tensor)]
            taken.append(fingerprint((leaf.name, leaf.value) for leaf in known if isinstance(leaf.value, Tensor)))

    handle = model.register_forward_hook(hook) if wanted else None
    try:
        yield taken
    finally:
        if handle is not None:
            handle.remove()


def alike_key(
    planned: PlannedCell, state: str, batch: Sequence[Call], outputs: Sequence[str], figures: Figures
) -> Hashable:
    """All that decides a verdict: cells with the same are the same.

    Args:
        state: fingerprint of the candidate's model.
        batch: its first calls.
        outputs: fingerprint of the first output.
        figures: of every module and text, which differ where any of them does.
    """
    cell = planned.cell
    given = [(name, tensor) for call in batch for name, tensor in tensors_in(call.kwargs)]
    plain = [{name: value for name, value in call.kwargs.items() if isinstance(value, (bool, str))} for call in batch]
    measured = hashlib.sha256(repr((figures.output, figures.texts, figures.modules)).encode()).hexdigest()
    settings = axes.parts("code", cell), axes.parts("conditions", cell), cell.inputs, cell.checkpoint
    return planned.reference_id, settings, state, fingerprint(given), repr(plain), *outputs, measured


class Causes:
    """The causes of a sweep's differences. Cells with the same finding share one, so that it is run once."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], CauseRecord] = {}

    def of(self, comparison: Comparison, cell_id: str, *, last: bool = True) -> CauseRecord | None:
        """The cause of a comparison that is policy or semantic. Whatever goes wrong is in it: the verdict stands.

        Args:
            last: nothing that takes less memory can be tried; else running out of it is raised.
        """
        if comparison.verdict.kind not in (Kind.POLICY, Kind.SEMANTIC):
            return None
        try:
            candidates = pointed_at(comparison)
            first = comparison.first_divergence
            finding = (
                *(comparison.verdict.kind, comparison.verdict.reason, comparison.measured.asked),
                None if first is None else (first.module, first.place),
                *(candidate.name for candidate in candidates),
            )
            if finding in self._known:
                return self._known[finding]
            cause = likely_cause(comparison, candidates, cell_id)
        except Exception as error:
            traceback.clear_frames(error.__traceback__)
            if not out_of_memory(error):
                return CauseRecord(cell_id=cell_id, error=f"{type(error).__name__}: {error}".splitlines()[0])
            if not last:
                raise
            return CauseRecord(cell_id=cell_id, error="memory ran out")
        if cause.forwards:  # what was measured anyway is each cell's own
            self._known[finding] = cause
        return cause


def verdict_record(comparison: Comparison, texts: Sequence[int], cause: CauseRecord | None = None) -> VerdictRecord:
    """What goes into `cell.json`."""
    verdict = comparison.verdict
    first = comparison.first_divergence
    if verdict.kind is Kind.IDENTICAL:  # only cells that differ somewhere are judged
        return VerdictRecord(
            kind=Kind.INCONCLUSIVE,
            reason="the texts that were judged agree bit for bit",
            decides="more of the texts in one comparison: sweeper.compare_models",
            texts=tuple(texts),
        )
    return VerdictRecord(
        kind=verdict.kind,
        reason=verdict.reason,
        decides=verdict.decides,
        evidence=tuple(EvidenceRecord(name=e.name, value=e.value, meaning=e.meaning) for e in verdict.evidence),
        first_divergence=None if first is None else str(first),
        texts=tuple(texts),
        cause=cause,
    )


def unjudged_record(error: Exception, texts: Sequence[int], cell_id: str) -> VerdictRecord:
    """The verdict where judging itself failed: the figures stand, the cell is not lost."""
    return VerdictRecord(
        kind=Kind.INCONCLUSIVE,
        reason=f"could not be judged: {type(error).__name__}: {error}".splitlines()[0],
        decides=f"python -m sweeper explain SWEEP {cell_id}",
        texts=tuple(texts),
    )


def short_of_memory(figures: Sequence[TextFigures], texts: Sequence[int]) -> str:
    """Why a cell has no verdict, and what to type: memory ran out on the texts that take least. That is no verdict."""
    tokens = sum(text.tokens for text in figures if text.text in texts)
    less = "type shorter texts (inputs=...), or the same command where more is free"
    return f"memory ran out, streamed and on {tokens} tokens alone too; {less}"
