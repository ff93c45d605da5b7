"""`python -m case_studies.report_2_page FILE.md SWEEP [SWEEP ...]`: report 2's page, with what each fix-up changed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from case_studies.fixups import FIXUPS_FILE, Fixups, FixupsRecord, load_fixups
from sweeper.config import Pooling
from sweeper.errors import ConfigError
from sweeper.published.lookup import fits
from sweeper.published.page import Section, write_page
from sweeper.published.publication import Axes
from sweeper.records.cell import CellRecord, PairMeasures, TextFigures
from sweeper.records.sweep import Sweep
from sweeper.reports.cells_table import Table, cosine, fraction, number
from sweeper.reports.markdown import table_lines

FIXUP_HEADINGS = ("fix-up", "proposed in", "attention", "max |Δ|", "mean |Δ|", "equal", "cosine")
TEXT_HEADINGS = ("dtype", "attention", "positions implicit", "positions explicit", "positions explicit, cache on")
MISSING = "–"
SECOND = 1  # the text that is padded


def main() -> int:
    """Writes the page. Returns the exit code: 0, or 2 with one line on what was wrong."""
    parser = argparse.ArgumentParser(prog="python -m case_studies.report_2_page", description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE.md")
    parser.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP", help="the first was run with reported=...")
    asked = parser.parse_args()
    try:
        print(*write_report_2(asked.file, asked.sweeps), sep="\n")
    except ConfigError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    return 0


def write_report_2(file: Path, folders: Sequence[Path]) -> list[Path]:
    """Writes the page of report 2 from finished sweeps. Returns what was written."""
    return write_page(file, folders, made_by=("python", "-m", "case_studies.report_2_page"), sections=sections)


def sections(sweeps: Sequence[Sweep]) -> Section:
    """What each fix-up changed, the padded text in every dtype, and pooling by count where it was run.

    The page shows the report's own backend and dtype; the data beside it has all.
    """
    fixups = Table(FIXUP_HEADINGS, tuple(_fixup_rows(load_fixups(), sweeps)))
    texts = Table(TEXT_HEADINGS, tuple(_text_rows(sweeps)))
    pooled = tuple(_pooling_rows(sweeps))
    own = load_fixups().cell
    return Section([*_shown(fixups, texts, pooled, own)], {"fixups_measured": fixups, "second_text": texts})


def _shown(fixups: Table, texts: Table, pooled: Sequence[tuple[str, ...]], own: Axes) -> Iterator[str]:
    yield from ("## What each fix-up changed", "")
    yield "Each alone, on the whole output over real tokens; `none` is the report's own pair. What no section"
    yield "proposes is ours. Every cell runs in eval mode and compares aligned tokens: the rows `without` them were"
    yield "measured by `python -m case_studies.measure_fixups`. Cosine: the least of a text's, or of all tokens where"
    yield from ("it says so.", "")
    backends = list(dict.fromkeys(row[2] for row in fixups.rows if row[0] == "none"))
    yield from table_lines(Table(fixups.headings, _until_the_second(fixups.rows, "none")))
    yield from ("## The second text, padded against packed", "", "max |Δ| / equal / cosine of its output.", "")
    yield from table_lines(Table(texts.headings, tuple(row for row in texts.rows if row[0] == own["dtype"])))
    if backends[1:]:
        yield from (f"The same fix-ups under {', '.join(backends[1:])}, and the other dtypes: in the data.", "")
    if pooled:
        yield from ("## Pooling by count", "", "Cosine of each text's embedding with that of the text alone.", "")
        yield from table_lines(Table(("layout", "pooling", "cosine of each text"), tuple(pooled)))


def _until_the_second(rows: Sequence[tuple[str, ...]], first: str) -> tuple[tuple[str, ...], ...]:
    """The rows up to the second one that begins so: those of the first backend."""
    starts = [i for i, row in enumerate(rows) if row[0] == first]
    return tuple(rows[: starts[1]] if starts[1:] else rows)


def _fixup_rows(fixups: Fixups, sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """Yields, for every attention backend in which the report's two cells ran, these, then each fix-up."""
    cell, reference = fixups.cell, fixups.reference
    own_backend = cell["attention"]
    backends = dict.fromkeys(record.axes["attention"] for record in _ran(sweeps, {}, {}))
    for attention in sorted(backends, key=lambda attention: attention != own_backend):  # the report's own first
        own: Axes = {"attention": attention, "numerics": "default"}
        unchanged = next(_ran(sweeps, cell | own, reference | own), None)
        if unchanged is None:
            continue
        yield "none", "", str(attention), *_output(unchanged)
        for fixup in fixups.fixups:
            if fixup.look_at in ("eval_mode", "aligned_slices"):
                label = f"without {fixup.look_at.replace('_', ' ')}"
                for measures in _without(fixup.look_at, unchanged, sweeps):
                    yield label, fixup.section, str(attention), *_measures(measures), f"{cosine(measures.cosine)} (all)"
                continue
            changed = next(_ran(sweeps, cell | own | fixup.cell, reference | own | fixup.reference), None)
            if changed is None:
                figures: tuple[str, ...] = (MISSING,) * 4
            else:
                figures = _embeddings(changed.texts) if fixup.look_at == "embeddings" else _output(changed)
            yield fixup.id, fixup.section, str((own | fixup.cell)["attention"]), *figures


def _text_rows(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """The second text of every dtype and attention backend: implicit and explicit positions, and with the cache on."""
    packed: Axes = {"layout": "packed", "positions": "explicit", "numerics": "default"}
    for dtype, attention in dict.fromkeys(
        (record.axes["dtype"], record.axes["attention"]) for record in _ran(sweeps, packed, {})
    ):
        own: Axes = {**packed, "dtype": dtype, "attention": attention}
        columns = [
            next(_ran(sweeps, {**own, "use_cache": use_cache}, {"layout": "padded_left", "positions": positions}), None)
            for positions, use_cache in (("implicit", False), ("explicit", False), ("explicit", True))
        ]
        yield str(dtype), str(attention), *map(_second_text, columns)


def _pooling_rows(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, ...]]:
    """Every cell of a sweep in which some pool by count."""
    for sweep in sweeps:
        ran = list(_ran([sweep], {}, {}))
        poolings = [record.choices["checkpoint"]["pooling"] for record in ran]
        if Pooling.LAST_TOKEN_BY_COUNT in poolings:
            for record, pooling in zip(ran, poolings, strict=True):
                cosines = ", ".join(cosine(text.embedding_cosine) for text in record.texts)
                yield str(record.axes["layout"]), pooling, cosines


def _ran(sweeps: Sequence[Sweep], cell: Axes, reference: Axes) -> Iterator[CellRecord]:
    """The cells that ran and have these axes, as has their reference."""
    records = (record for sweep in sweeps for record in sweep.records)
    return (record for record in records if record.output is not None and fits(record, cell, reference))


def _without(look_at: str, unchanged: CellRecord, sweeps: Sequence[Sweep]) -> Iterator[PairMeasures]:
    """What comes without a fix-up that every cell has."""
    for sweep in sweeps:
        found = FixupsRecord.read(sweep.folder / FIXUPS_FILE)
        if found is not None and found.cell_id == unchanged.cell_id:
            yield from (one.without for one in found.fixups if one.fixup == look_at)


def _output(record: CellRecord) -> tuple[str, ...]:
    assert record.output is not None, "only cells that ran are looked up"
    return *_measures(record.output), cosine(min(text.output_cosine for text in record.texts))


def _measures(measures: PairMeasures) -> tuple[str, str, str]:
    return number(measures.max_abs), number(measures.mean_abs), fraction(measures.equal_fraction)


def _embeddings(texts: Sequence[TextFigures]) -> tuple[str, ...]:
    largest = max(text.embedding_max_abs for text in texts)
    mean = sum(text.embedding_mean_abs for text in texts) / len(texts)
    return number(largest), number(mean), MISSING, cosine(min(text.embedding_cosine for text in texts))


def _second_text(record: CellRecord | None) -> str:
    if record is None or len(record.texts) <= SECOND:
        return MISSING
    text = record.texts[SECOND]
    return " / ".join((number(text.output_max_abs), fraction(text.output_equal_fraction), cosine(text.output_cosine)))


if __name__ == "__main__":
    sys.exit(main())
