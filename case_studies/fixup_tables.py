"""Rows of tables: what each fix-up of a report changed, positions and cache text by text, pooling by count."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from case_studies.fixup_records import FIXUPS_FILE, FixupsRecord
from case_studies.fixups import Fixup, Fixups
from sweeper.config import Pooling
from sweeper.published.lookup import has
from sweeper.published.publication import Axes
from sweeper.records.cell import CellRecord, PairMeasures, TextFigures
from sweeper.records.sweep import Sweep
from sweeper.reports.cells_table import cosine, fraction, number

MISSING = "–"
SECOND = 1  # the text that is padded


def fixup_rows(fixups: Fixups, sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """Yields, for every attention backend in which the report's two cells ran, these, then each fix-up."""
    cell, reference = fixups.cell, fixups.reference
    for attention in _attentions(sweeps, cell, reference):
        own: Axes = {"attention": attention, "numerics": "default"}
        unchanged = _find(sweeps, cell | own, reference | own)
        if unchanged is None:
            continue
        yield "none", "", str(attention), *_output(unchanged)
        for fixup in fixups.fixups:
            if fixup.look_at in ("eval_mode", "aligned_slices"):
                yield from _measured_apart(fixup, unchanged, sweeps)
                continue
            changed = _find(sweeps, cell | own | fixup.cell, reference | own | fixup.reference)
            figures = (MISSING,) * 4 if changed is None else _figures(fixup, changed)
            yield fixup.id, fixup.section, str((own | fixup.cell)["attention"]), *figures


def text_rows(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """The second text of every dtype and attention backend: implicit and explicit positions, and with the cache on."""
    packed: Axes = {"layout": "packed", "positions": "explicit", "numerics": "default"}
    ran = [record for sweep in sweeps for record in sweep.records if record.output and has(record.axes, packed)]
    for dtype, attention in dict.fromkeys((record.axes["dtype"], record.axes["attention"]) for record in ran):
        own: Axes = {**packed, "dtype": dtype, "attention": attention}
        columns = [
            _find(sweeps, {**own, "use_cache": use_cache}, {"layout": "padded_left", "positions": positions})
            for positions, use_cache in (("implicit", False), ("explicit", False), ("explicit", True))
        ]
        yield str(dtype), str(attention), *map(_second_text, columns)


def pooling_rows(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """Every cell of a sweep in which some pool by count."""
    for sweep in sweeps:
        ran = [record for record in sweep.records if record.output]
        poolings = {record.choices["checkpoint"]["pooling"] for record in ran}
        if Pooling.LAST_TOKEN_BY_COUNT not in poolings:
            continue
        for record in ran:
            cosines = ", ".join(cosine(text.embedding_cosine) for text in record.texts)
            yield str(record.axes["layout"]), record.choices["checkpoint"]["pooling"], cosines


def _attentions(sweeps: Sequence[Sweep], cell: Axes, reference: Axes) -> list[str | bool]:
    """The backends in which the two cells ran, the report's own first."""
    without = {axis: value for axis, value in cell.items() if axis != "attention"}
    reference = {axis: value for axis, value in reference.items() if axis != "attention"}
    found = [r.axes["attention"] for sweep in sweeps for r in sweep.records if r.output and _is(r, without, reference)]
    return sorted(dict.fromkeys(found), key=lambda attention: attention != cell.get("attention"))


def _find(sweeps: Sequence[Sweep], cell: Axes, reference: Axes) -> CellRecord | None:
    ran = (record for sweep in sweeps for record in sweep.records if record.output is not None)
    return next((record for record in ran if _is(record, cell, reference)), None)


def _is(record: CellRecord, cell: Axes, reference: Axes) -> bool:
    return has(record.axes, cell) and has(record.reference_axes, reference)


def _figures(fixup: Fixup, record: CellRecord) -> tuple[str, ...]:
    return _embeddings(record.texts) if fixup.look_at == "embeddings" else _output(record)


def _output(record: CellRecord) -> tuple[str, ...]:
    assert record.output is not None, "only cells that ran are looked up"
    least = min(text.output_cosine for text in record.texts)
    return (*_measures(record.output)[:3], cosine(least))


def _measures(measures: PairMeasures) -> tuple[str, ...]:
    return (
        number(measures.max_abs),
        number(measures.mean_abs),
        fraction(measures.equal_fraction),
        f"{cosine(measures.cosine)} (all)",
    )


def _embeddings(texts: Sequence[TextFigures]) -> tuple[str, ...]:
    largest = max(text.embedding_max_abs for text in texts)
    mean = sum(text.embedding_mean_abs for text in texts) / len(texts)
    return number(largest), number(mean), MISSING, cosine(min(text.embedding_cosine for text in texts))


def _measured_apart(fixup: Fixup, unchanged: CellRecord, sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """What comes without a fix-up that every cell has."""
    label = fixup.look_at.replace("_", " ")
    for path in (sweep.folder / FIXUPS_FILE for sweep in sweeps):
        found = FixupsRecord.read(path)
        for one in found.fixups if found and found.cell_id == unchanged.cell_id else ():
            if one.fixup == fixup.look_at:
                yield f"without {label}", fixup.section, str(unchanged.axes["attention"]), *_measures(one.without)


def _second_text(record: CellRecord | None) -> str:
    if record is None or len(record.texts) <= SECOND:
        return MISSING
    text = record.texts[SECOND]
    parts = number(text.output_max_abs), fraction(text.output_equal_fraction), cosine(text.output_cosine)
    return " / ".join(parts)
