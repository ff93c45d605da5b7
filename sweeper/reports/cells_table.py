"""How figures are written, and the table of cells that the terminal, Markdown and the page all show."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Self

from sweeper.records.cell import CellRecord, StateFigures, Status
from sweeper.records.sweep import Sweep, short_ids, varying_axes

FIGURE_HEADINGS = ("max |Δ|", "mean |Δ|", "equal", "cosine", "KL", "top-1")
FIGURES = frozenset(
    {
        *(*FIGURE_HEADINGS, "rel. L2", "SQNR dB", "tokens", "output max |Δ|", "output equal", "output cosine"),
        *("embedding cosine", "embedding max |Δ|", "embedding mean |Δ|", "published", "measured"),
    }
)
"""The headings of columns that hold figures, wherever they stand: they are set to the right."""
MERGED = "choices"  # the heading of all axes in one column
CHOICES_WIDTH = 30  # and how narrow it may get: most cells take two lines
GAP = 2  # spaces between columns in a terminal
LEGEND = {
    "verdict": "rounding is harmless, policy a cast that nobody asked for, semantic another function; docs/verdict.md",
    "max |Δ|": "largest |candidate − reference| of the {output}",
    "mean |Δ|": "its mean",
    "equal": "share of equal elements",
    "cosine": "least of a text's embedding",
    "KL": "mean a token, in nats",
    "top-1": "share of tokens with the same most likely next one",
    "state": "parameters and buffers that differ",
    "starts at": "first module whose output differs",
}


@dataclass(frozen=True)
class Table:
    """Headings, and rows of text; a row shorter than the headings has nothing more to say."""

    headings: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()

    def without(self, headings: Collection[str]) -> Self:
        """The table with some columns left out."""
        kept = [i for i, heading in enumerate(self.headings) if heading not in headings]
        rows = tuple(tuple(row[i] for i in kept if i < len(row)) for row in self.rows)
        return replace(self, headings=tuple(self.headings[i] for i in kept), rows=rows)

    def widths(self, available: int, *, whole_headings: bool = True) -> list[int]:
        """Widths of the columns: the longest word of each, then what is left over, to the first columns first.

        Args:
            whole_headings: a heading of several words takes one line.
        """
        columns = list(zip_longest(self.headings, *self.rows, fillvalue=""))
        widths = [max(len(word) for text in column for word in text.split() or [""]) for column in columns]
        if whole_headings:
            widths = [max(width, len(heading)) for width, heading in zip(widths, self.headings, strict=True)]
        if MERGED in self.headings:
            choices = self.headings.index(MERGED)
            widths[choices] = max(widths[choices], min(CHOICES_WIDTH, max(map(len, columns[choices]))))
        left_over = available - sum(widths) - GAP * (len(widths) - 1)
        for i, column in enumerate(columns):
            more = max(0, min(max(map(len, column)) - widths[i], left_over))
            widths[i] += more
            left_over -= more
        return widths

    def fits(self, available: int, *, whole_headings: bool = True) -> bool:
        """Whether the columns fit without breaking a word."""
        widths = self.widths(available, whole_headings=whole_headings)
        return sum(widths) + GAP * (len(self.headings) - 1) <= available


@dataclass(frozen=True, kw_only=True)
class CellsTable(Table):
    """A row a cell.

    Attributes:
        constant: what all cells share, `axis=value, ...`.
        axes: the columns behind the cell's short id and its verdict that are axes.
    """

    constant: str
    axes: tuple[str, ...]

    def merged(self) -> CellsTable:
        """The table with all axes in one column, which can be wrapped between them."""
        first = 1 + ("verdict" in self.headings)
        behind = first + len(self.axes)
        rows = []
        for row in self.rows:
            values = zip(self.axes, row[first:behind], strict=True)
            label = " ".join(f"{axis}={value}" if value in ("True", "False") else value for axis, value in values)
            rows.append((*row[:first], label, *row[behind:]))
        headings = (*self.headings[:first], MERGED, *self.headings[behind:])
        return replace(self, headings=headings, rows=tuple(rows))

    def legend(self, output: str) -> list[tuple[str, str]]:
        """Heading -> what it is, for the columns that are there."""
        return [(name, LEGEND[name].format(output=output)) for name in self.headings if name in LEGEND]


def cells_table(records: Sequence[CellRecord]) -> CellsTable:
    """The verdict, the axes that vary, the figures that matter, the status.

    A column of figures that no cell has is left out; a state that is the same everywhere is said once, in `constant`.
    """
    varying = varying_axes([record.axes for record in records])
    ids = short_ids([record.cell_id for record in records])
    rows = [
        (
            *(ids[record.cell_id], record.verdict.kind if record.verdict else ""),
            *(*(str(record.axes[axis]) for axis in varying), *_figures(record), status(record)),
        )
        for record in records
    ]
    headings = ("cell", "verdict", *varying, *FIGURE_HEADINGS, "state", "starts at", "status")
    empty = [name for i, name in enumerate(headings) if name in LEGEND and not any(row[i] for row in rows)]
    axes = records[0].axes if records else {}
    constant = [", ".join(f"{axis}={value}" for axis, value in axes.items() if axis not in varying)]
    if {row[headings.index("state")] for row in rows} - {""} == {"same"}:
        empty.append("state")
        constant.append("parameters and buffers equal to the reference's")
    shared = "; ".join(filter(None, constant))
    return CellsTable(headings, tuple(rows), constant=shared, axes=tuple(varying)).without(empty)


def output_name(records: Sequence[CellRecord]) -> str:
    """What the compared output is: `logits`, `last hidden state`, or both words where cells differ."""
    kinds = dict.fromkeys(record.output_kind for record in records if record.output_kind)
    return " or ".join(kind.replace("_", " ") for kind in kinds) or "output"


def status(record: CellRecord) -> str:
    """`reference`, `ok`, `failed` or `unsupported`; a cell whose second forward gave other bits says so."""
    if record.status is not Status.OK:
        return record.status.value
    name = "reference" if is_reference(record) else "ok"
    return name if record.cost is None or record.cost.repeatable is not False else f"{name}, not repeatable"


def is_reference(record: CellRecord) -> bool:
    return record.cell_id == record.reference_id


def differs(record: CellRecord) -> bool:
    """Whether the output of any module is not the reference's, bit for bit."""
    return record.first_divergence is not None


def summary(sweep: Sweep) -> str:
    """How the cells ended, in a sentence."""
    records, planned, damaged = sweep.records, len(sweep.description.cells), len(sweep.damaged)
    measured = [record for record in records if record.output is not None]
    equal = sum(not differs(record) for record in measured)
    ended = Counter(record.status for record in records)
    verdicts = Counter(record.verdict.kind for record in records if record.verdict)
    which = references(records)
    named = f" ({which})" if which else ""
    parts = [f"{equal} equal to their reference{named} in every module's output", f"{len(measured) - equal} not"]
    parts += [f"{ended[kind]} {kind.value}" for kind in (Status.UNSUPPORTED, Status.FAILED) if ended[kind]]
    parts += [f"verdicts: {', '.join(f'{n} {kind}' for kind, n in verdicts.most_common())}"] * bool(verdicts)
    parts += [f"{damaged} with files that are not what was written"] * bool(damaged)
    parts += [f"{planned - len(records) - damaged} not run yet"] * (planned > len(records) + damaged)
    return f"{planned} cell{'s' * (planned != 1)}: " + ", ".join(parts)


def references(records: Sequence[CellRecord]) -> str:
    """What the cells are compared with, as far as it is not their own choice: `dtype=float32 attention=eager`."""
    axes = dict.fromkeys(
        axis for record in records for axis, value in record.reference_axes.items() if record.axes.get(axis) != value
    )
    values = {axis: dict.fromkeys(str(record.reference_axes.get(axis)) for record in records) for axis in axes}
    return " ".join(f"{axis}={','.join(given)}" for axis, given in values.items())


def reasons(records: Sequence[CellRecord]) -> list[tuple[Status, str]]:
    """Why cells did not run and what changed nothing, each reason once, with how many cells it concerns."""
    ended = [(record.status, record.reason) for record in records if record.reason]
    without_effect = [
        (Status.OK, f"{flag} has no effect here: {why}")
        for record in records
        for flag, why in record.without_effect.items()
    ]
    swapped = [(Status.OK, f"torch took another kernel: {said}") for record in records for said in record.fallbacks]
    counts = Counter(without_effect + swapped + ended)
    return [(kind, f"{reason} (×{count})") for (kind, reason), count in counts.items()]


_HARDWARE = ("gpu", "cpu", "driver", "cuda", "cudnn", "cublas", "cpu_capability", "threads", "platform")
_VERSIONS = ("torch", "transformers", "flash_attn", "flash_attn_3", "tokenizers", "python", "sweeper")


def made_on(records: Sequence[CellRecord]) -> list[str]:
    """Date, hardware, versions and weights, as the records have them; several where cells do not agree."""
    if not records:
        return []
    days = sorted({record.started_at[:10] for record in records})
    revisions = {f"{record.axes['checkpoint']} {record.checkpoint_revision}": None for record in records}
    known = [name for name in revisions if not name.endswith(" None")]
    return [
        f"date: {' to '.join(dict.fromkeys((days[0], days[-1])))}",
        f"hardware: {_environment(records, _HARDWARE)}",
        f"versions: {_environment(records, _VERSIONS)}",
        *([f"weights: {', '.join(known)}"] if known else []),
    ]


def _environment(records: Sequence[CellRecord], keys: Sequence[str]) -> str:
    known = {key: dict.fromkeys(str(record.environment.get(key)) for record in records) for key in keys}
    return ", ".join(f"{key} {' or '.join(values)}" for key, values in known.items() if list(values) != ["None"])


def state_summary(state: StateFigures | None) -> str:
    """`same`, or what differs: up to two buffers by name, parameters by number; a mere dtype as `dtype`."""
    if state is None:
        return ""
    values = [entry for entry in state.differing if not entry.values_equal]
    if not values:
        return "dtype" if state.differing else "same"
    parameters = sum(entry.kind == "parameter" for entry in values)
    buffers = [entry.name for entry in values if entry.kind != "parameter"]
    named = joined_names(buffers) if len(buffers) <= 2 else f"{len(buffers)} buffers"
    return ", ".join([f"{parameters} parameter{'s' * (parameters > 1)}"] * bool(parameters) + [named] * bool(buffers))


def joined_names(names: Sequence[str]) -> str:
    """`rotary_emb.inv_freq, original_inv_freq`: without the model's own name, and each owner once."""
    short = [name.split(".", 1)[-1] for name in names]
    owners = [name.rpartition(".")[0] for name in short]
    return ", ".join(
        name.rpartition(".")[2] if i and owners[i] == owners[i - 1] else name for i, name in enumerate(short)
    )


def number(value: float) -> str:
    """Four significant digits, `0` for nothing."""
    return "0" if value == 0 else f"{value:.4g}"


def fraction(value: float) -> str:
    """A share with four decimals; `1` and `0` only when it is exactly that."""
    return f"{value:.0f}" if value in (0.0, 1.0) else f"{min(max(value, 0.0001), 0.9999):.4f}"


def cosine(value: float) -> str:
    """Six decimals; what rounds to 1 without being 1 to float64 rounding shows how far it is from it."""
    distance = 1 - value
    if abs(distance) < 1e-15:
        return "1"
    return f"1-{distance:.0e}".replace("e-0", "e-") if 0 < distance < 5e-7 else f"{value:.6f}"


def _figures(record: CellRecord) -> list[str]:
    output, language = record.output, record.language
    if output is None:
        return [""] * (len(FIGURE_HEADINGS) + 2)
    nan = f" NaN×{output.candidate_nan}" if output.candidate_nan else ""
    return [
        number(output.max_abs) + nan,
        number(output.mean_abs),
        fraction(output.equal_fraction),
        cosine(min((text.embedding_cosine for text in record.texts), default=math.nan)),
        number(language.kl_mean) if language else "",
        fraction(language.top1_agreement) if language else "",
        state_summary(record.state),
        short_module(record.first_divergence) if record.first_divergence else "nowhere",
    ]


def short_module(name: str) -> str:
    """`model.layers.3.self_attn.o_proj` -> `layer 3 self_attn.o_proj`, `model.norm` -> `norm`."""
    inside = re.match(r"(?:.*?\.)?(\d+)\.(.+)$", name)
    return f"layer {inside[1]} {inside[2]}" if inside else name.removeprefix("model.")
