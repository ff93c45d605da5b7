"""A sweep's answer in sentences: one a distinct finding, worst first; then what was rounding; then what to type."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sweeper.records.cell import RECORDED, CellRecord, Status
from sweeper.records.sweep import short_label, varying_axes
from sweeper.records.verdict import CauseRecord, VerdictRecord

UNJUDGED = "not judged"
WORST_FIRST = ("failed", "semantic", "policy", "inconclusive", UNJUDGED, "unsupported", "rounding", "identical")
"""How a cell may end: its status where that is not `ok`, else its verdict."""
FOUND = WORST_FIRST[:4]  # what asks for something to be done
_LABELS = 4  # cells that are named one by one


@dataclass(frozen=True, kw_only=True)
class Line:
    """One sentence. `end` is a word of `WORST_FIRST`, or empty for what to type; `cells` are those that it speaks of.

    That whose output moved most comes first.
    """

    end: str
    text: str
    cells: tuple[CellRecord, ...] = ()


def end_of(record: CellRecord) -> str:
    """How the cell ended; a word of `WORST_FIRST`. What no verdict was asked of is identical or not judged."""
    if record.status is not Status.OK:
        return record.status.value
    if record.verdict is not None:
        return record.verdict.kind
    return "identical" if record.first_divergence is None and not record.unjudged else UNJUDGED


def answer(records: Sequence[CellRecord], folder: Path) -> list[Line]:
    """The sentences.

    Args:
        records: the cells of a sweep.
        folder: the sweep's, for what to type.
    """
    groups: dict[tuple[str, ...], list[CellRecord]] = {}
    for record in records:
        groups.setdefault(_finding(record), []).append(record)
    ordered = sorted(groups.items(), key=lambda group: WORST_FIRST.index(group[0][0]))
    found = [(key[0], _furthest_first(cells)) for key, cells in ordered]
    told = [(end, _sentence(end, cells, records) + _neighbours(end, cells), cells) for end, cells in found]
    lines = [Line(end=end, text=text, cells=tuple(cells)) for end, text, cells in told]
    return [*lines, *_next(records, folder)]


def headline(records: Sequence[CellRecord]) -> str:
    """The whole in one line: `of 24 cells 6 need something done (6 policy), 16 are fine, 2 did not run`."""
    ends = Counter(end_of(record) for record in records)
    found = {end: ends[end] for end in FOUND if ends[end]}
    which = ", ".join(f"{number} {end}" for end, number in found.items())
    number, fine = sum(found.values()), ends["identical"] + ends["rounding"]
    parts = [f"{number} {'needs' if number == 1 else 'need'} something done ({which})"] if found else []
    parts += [f"{fine} {'is' if fine == 1 else 'are'} fine"] if fine else []
    parts += [
        f"{ends[end]} {end if end == UNJUDGED else 'did not run'}" for end in (UNJUDGED, "unsupported") if ends[end]
    ]
    return f"of {len(records)} cell{'s' * (len(records) > 1)} {', '.join(parts)}"


def _finding(record: CellRecord) -> tuple[str, ...]:
    """What cells have in common that share a sentence."""
    end, verdict = end_of(record), record.verdict
    if end == UNJUDGED and record.unjudged:
        return end, _without_numbers(record.unjudged)
    if end in ("rounding", "identical", UNJUDGED):
        return (end,)
    if record.status is not Status.OK or verdict is None:
        return end, record.reason or ""
    cause = verdict.cause
    if cause is not None and cause.what is not None:
        return end, cause.what, _proof(cause)[0]
    return end, _without_numbers(verdict.reason), _starts(verdict)


def _without_numbers(text: str) -> str:
    """The text with its figures left out; digits inside a name stay."""
    return re.sub(r"(?<![\w.])\d[\d.]*(e-?\d+)?(?=[%x]?\b)", "#", text)


def _furthest_first(cells: Iterable[CellRecord]) -> list[CellRecord]:
    """The cells, that whose output moved most first."""
    return sorted(cells, key=lambda record: -_moved(record))


def _sentence(end: str, cells: Sequence[CellRecord], records: Sequence[CellRecord]) -> str:
    worst, count = cells[0], f"{end}, {len(cells)} cell{'s' * (len(cells) > 1)}"
    if end == "identical":
        return f"{count}: every compared tensor has the reference's values"
    if end == UNJUDGED:
        moved = f"outputs differ, by rel. L2 {_far(worst)} at most"
        why = worst.unjudged or "leave out verdict=false to have them judged"
        return f"{count}: {moved}{_where(cells, records)}; {why}"
    if end == "rounding":
        ratio = _over_floor(cells)
        floor = f", {ratio:.2g} times the noise floor at most" if ratio is not None else ""
        most = f", most in {labels([worst], records)}" if len(cells) > 1 else _where(cells, records)
        moved = f"outputs move by rel. L2 {_far(worst)} at most{floor}{most}"
        return f"{count}: nothing to do, the same function rounded differently; {moved}"
    if worst.status is not Status.OK or worst.verdict is None:
        return f"{count}{_where(cells, records)}: {worst.reason}"
    if RECORDED in worst.reference_axes:
        return f"{count}: {_why_recorded(worst.verdict, _where(cells, records))}"
    meaning = "another function is computed; " if end == "semantic" else ""
    return f"{count}: {meaning}{_why(worst.verdict, _where(cells, records))}"


def _neighbours(end: str, cells: Iterable[CellRecord]) -> str:
    """What it means for who searches with the embeddings; nothing where a sweep compares logits."""
    shares = [record.neighbours_changed for record in cells if record.neighbours_changed is not None]
    if end == "identical" or not shares:
        return ""
    most = max(shares)
    return f"; {f'{most:.0%} of the texts at most have' if most else 'no text has'} another nearest neighbour"


def _why(verdict: VerdictRecord, where: str) -> str:
    """What is wrong, where, what to type, and the proof."""
    cause = verdict.cause
    if cause is not None and cause.what is not None:
        fix = (cause.put_back or "").partition(", or ")[0]  # the first of several ways; `explain` names all
        return f"{cause.what}{where}; to put it back: {fix}; {_proof(cause)[1]}"
    starts = f"; {_starts(verdict)}" if verdict.first_divergence else ""
    if verdict.decides:
        return f"{verdict.reason}{where}{starts}; would decide: {verdict.decides}"
    if cause is None:
        return f"{verdict.reason}{where}{starts}"
    if cause.error is not None:
        return f"{verdict.reason}{where}{starts}; its cause could not be looked for ({cause.error})"
    tried = f"of {len(cause.tried)} changes that were tried none closes it" if cause.tried else "no setting differs"
    return f"{verdict.reason}{where}{starts}; {tried}, explain looks further"


def _why_recorded(verdict: VerdictRecord, where: str) -> str:
    """The same of cells that were compared with a recording, which is what may be wrong."""
    cause = verdict.cause
    if cause is not None and cause.what is not None:
        before, after = cause.replay_before or math.nan, cause.replay_after or math.nan
        lies = f"it lies {before:.3g} of our own errors from our float64 run, and with that {after:.2g}"
        return f"{cause.what}{where}; to mend it: {cause.put_back}; {lies}"
    decides = f"; would decide: {verdict.decides}" if verdict.decides else ""
    tried = f" (tried: {', '.join(dict.fromkeys(cause.tried))})" if cause is not None else ""
    return f"{verdict.reason}{where}{tried}{decides}"


def _proof(cause: CauseRecord) -> tuple[str, str]:
    """The kind of proof, and the proof in words."""
    if cause.closed_bitwise:
        return "bitwise", "proof: with only that put back the outputs are the reference's, bit for bit"
    return (
        "replay",
        f"proof: with only that put back the difference in float64, rel. L2 {cause.replay_before:.2g}, "
        f"becomes {cause.replay_after:.2g}",
    )


def _starts(verdict: VerdictRecord) -> str:
    """`introduced at model.rotary_emb`: without the token and the figure, which cells need not share."""
    return (verdict.first_divergence or "").partition(": rel_l2")[0].partition(", most at")[0]


def _far(record: CellRecord) -> str:
    return f"{record.output.rel_l2:.2g}" if record.output else "?"


def _over_floor(cells: Iterable[CellRecord]) -> float | None:
    """The largest ratio of a difference to its noise floor, of the cells that have one."""
    evidence = (found for record in cells if record.verdict for found in record.verdict.evidence)
    ratios = [found.value for found in evidence if found.name == "native over floor"]
    return max((ratio for ratio in ratios if isinstance(ratio, float)), default=None)


def _where(cells: Sequence[CellRecord], records: Sequence[CellRecord]) -> str:
    """` in cast_after_load, auto_then_cast`: empty where it is every cell of the sweep."""
    return "" if len(cells) == len(records) else f", in {labels(cells, records)}"


def labels(cells: Sequence[CellRecord], records: Sequence[CellRecord]) -> str:
    """The values that these cells have and others have not; the cells one by one where values do not tell."""
    varying = varying_axes([record.axes for record in records])
    own = {axis: {record.axes[axis] for record in cells} for axis in varying}
    telling = [axis for axis in varying if own[axis] != {record.axes[axis] for record in records}]
    alike = [record for record in records if all(record.axes[axis] in own[axis] for axis in telling)]
    if telling and len(alike) == len(cells) > 1:
        values = {axis: list(dict.fromkeys(str(record.axes[axis]) for record in alike)) for axis in telling}
        if len(values) == 1:
            return _values(telling[0], alike)
        return " ".join(f"{axis}={','.join(given)}" for axis, given in values.items())  # as one would type it
    labels = [short_label(record.axes, varying) for record in cells]
    more = f" and {len(labels) - _LABELS} more" if len(labels) > _LABELS else ""
    return ", ".join(labels[:_LABELS]) + more


def _values(axis: str, records: Sequence[CellRecord]) -> str:
    """The values of an axis, in the order of the sweep."""
    return ", ".join(dict.fromkeys(short_label(record.axes, [axis]) for record in records))


def worst(records: Sequence[CellRecord]) -> CellRecord | None:
    """The cell that ended worst; of several the one whose output moved most. None of no cells."""
    return min(records, key=lambda record: (WORST_FIRST.index(end_of(record)), -_moved(record)), default=None)


def worst_first(records: Sequence[CellRecord]) -> list[CellRecord]:
    """The cells by how they ended, then by how far the output moved; what could not run has nothing to show: last."""

    def rank(record: CellRecord) -> tuple[int, float]:
        end = end_of(record)
        place = len(WORST_FIRST) if end == Status.UNSUPPORTED else WORST_FIRST.index(end)
        return place, -_moved(record)

    return sorted(records, key=rank)


def _next(records: Sequence[CellRecord], folder: Path) -> list[Line]:
    """The command for the worst cell; none where nothing asks for one."""
    cell = worst(records)
    if cell is None or end_of(cell) not in FOUND:
        return []
    if end_of(cell) != "failed" and RECORDED in cell.reference_axes:
        return [Line(end="", text=f"the worst cell with all that was tried: {_report(cell, folder)}")]
    if end_of(cell) == "failed":
        return [Line(end="", text=f"its traceback: {_report(cell, folder)}")]
    return [Line(end="", text=f"the worst cell in depth: python -m sweeper explain {folder} {cell.cell_id}")]


def _report(cell: CellRecord, folder: Path) -> str:
    return f"python -m sweeper report {folder} --cell {cell.cell_id}"


def _moved(record: CellRecord) -> float:
    """How far the output moved; nothing is further than NaN."""
    moved = record.output.rel_l2 if record.output else 0.0
    return math.inf if math.isnan(moved) else moved
