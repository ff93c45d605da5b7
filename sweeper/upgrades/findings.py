"""What two environments make of one cell: a change with its kind, worst first, and whether that is a regression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sweeper.records.cell import CellRecord, Status
from sweeper.records.recording import Recording
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep
from sweeper.reports.answer import UNJUDGED, WORST_FIRST, end_of
from sweeper.upgrades.environments import EnvironmentChange, environment_changes
from sweeper.upgrades.joining import Joined, Sided, join
from sweeper.upgrades.moved import Moved, moved
from sweeper.verdict.thresholds import FLOOR_MULTIPLE

KINDS = (
    "does not run",
    "other tokens",
    "another function",
    "beyond its noise",
    "worse verdict",
    "runs again",
    "other verdict",
    "other rounding",
    "unrecorded",
    "same bits",
)
"""What can become of a cell, worst first."""
REGRESSIONS = KINDS[: KINDS.index("worse verdict") + 1]
_MOST_NAMES = 3  # of what one side alone has, in a sentence


class CellPair(NamedTuple):
    """One cell in both environments."""

    old: CellRecord
    new: CellRecord


@dataclass(frozen=True, kw_only=True)
class CellChange:
    """What became of one cell.

    Attributes:
        label: the values of the axes that vary.
        kind: a word of `KINDS`.
        reason: a clause.
        since: the first module that moved, where modules were recorded.
        moved: what the recordings tell; None where one of the two has none.
    """

    label: str
    pair: CellPair
    kind: str
    reason: str
    since: str | None = None
    moved: Moved | None = None

    @property
    def verdicts(self) -> tuple[str, str]:
        """How the cell ended in each environment."""
        return end_of(self.pair.old), end_of(self.pair.new)


@dataclass(frozen=True, kw_only=True)
class Upgrade:
    """Two sweeps of one grid.

    Attributes:
        environment: what differs.
        cells: what became of each, worst first.
        joined: which cells have no partner.
    """

    old: Sweep
    new: Sweep
    environment: tuple[EnvironmentChange, ...]
    cells: tuple[CellChange, ...]
    joined: Joined[CellRecord]

    @property
    def regressions(self) -> tuple[CellChange, ...]:
        return tuple(change for change in self.cells if change.kind in REGRESSIONS)

    @property
    def exit_code(self) -> int:
        """1 on a regression, where cells of the old sweep have no partner, and where nothing could be compared."""
        known = any(change.kind != "unrecorded" or change.pair.new.status is Status.OK for change in self.cells)
        return int(bool(self.regressions or self.joined.only_old or not known))


def compare_sweeps(old: Sweep, new: Sweep) -> Upgrade:
    """Compares two sweeps cell by cell.

    Raises:
        ConfigError: a recording that lies beside a cell is none.
    """
    several = any(len({record.axes["device"] for record in sweep.records}) > 1 for sweep in (old, new))
    joined = join(*(_sided(sweep, several) for sweep in (old, new)))
    stores = Store(old.folder), Store(new.folder)
    changes = [_change(pair.label, CellPair(pair.old, pair.new), stores) for pair in joined.pairs]
    changes.sort(key=lambda change: KINDS.index(change.kind))
    return Upgrade(
        old=old,
        new=new,
        environment=tuple(environment_changes(old.records, new.records)),
        cells=tuple(changes),
        joined=joined,
    )


def _sided(sweep: Sweep, several: bool) -> list[tuple[CellRecord, Sided]]:
    """The cells with their axes. The device is none, unless a sweep has several: that CPU is compared with GPU is said
    of the environments."""
    left_out = () if several else ("device",)

    def kept(axes: dict[str, str | bool]) -> dict[str, str | bool]:
        return {axis: value for axis, value in axes.items() if axis not in left_out}

    return [(record, Sided(kept(record.axes), kept(record.reference_axes))) for record in sweep.records]


def _change(label: str, pair: CellPair, stores: tuple[Store, Store]) -> CellChange:
    ran = [record.status is Status.OK for record in pair]
    if ran != [True, True]:
        kind, reason = _unrun(pair, ran)
        return CellChange(label=label, pair=pair, kind=kind, reason=reason)
    recordings = [store.recording(record.cell_id) for store, record in zip(stores, pair, strict=True)]
    found = None
    if all(path.is_file() for path in recordings):
        found = moved(*(Recording.read(path, nan=True) for path in recordings))
    kind, reason, since = _kind(pair, found)
    return CellChange(label=label, pair=pair, kind=kind, reason=reason, since=since, moved=found)


def _unrun(pair: CellPair, ran: list[bool]) -> tuple[str, str]:
    if ran == [True, False]:
        return "does not run", f"{pair.new.status.value}: {pair.new.reason}"
    if ran == [False, True]:
        return "runs again", f"was {pair.old.status.value}: {pair.old.reason}"
    return "unrecorded", f"{pair.new.status.value} in both: {pair.new.reason}"


def _kind(pair: CellPair, found: Moved | None) -> tuple[str, str, str | None]:
    """The kind, the reason, and since which module."""
    verdict = _verdict(pair)
    if found is not None and found.other_tokens:
        return "other tokens", "the two environments read other token ids: the tokenizer changed", None
    if found is not None and found.another_function:
        tables = f"; {', '.join(found.tables)} is not the same" if found.tables else ""
        reason = f"the runs in float64 are rel. L2 {found.exact:.2g} apart, of which {found.bound:.1g} may be noise"
        return "another function", f"{reason}{tables}", found.exact_since or found.since
    if found is not None and found.beyond_noise:
        floors = found.native / found.floor if found.floor > 0 else float("inf")
        exact = ", though float64 agrees" if found.exact is not None else ""
        reason = f"outputs moved by rel. L2 {found.native:.2g}, {floors:.3g} times their noise floor{exact}"
        return "beyond its noise", f"{reason}; up to {FLOOR_MULTIPLE:g} is rounding", found.since
    if verdict is not None:
        since = found.since if found else pair.new.first_divergence
        return *verdict, since
    if found is None:
        return "unrecorded", _figures(pair), None
    if found.same_bits:
        return "same bits", same_bits(found), None
    over = f", {found.native / found.floor:.2g} times the noise floor" if found.floor > 0 else ""
    exact = "" if found.exact is None else f"; float64 agrees to {found.exact:.1g}"
    return "other rounding", f"outputs moved by rel. L2 {found.native:.2g}{over}{exact}", found.since


def same_bits(found: Moved) -> str:
    """What is the same bit for bit, and what of the recordings is not."""
    rest = [f"float64 agrees to {found.exact:.1g}"] if found.exact else []
    rest += [f"{', '.join(found.tables)} is not the same"] if found.tables else []
    for side, names in (("OLD", found.only_old), ("NEW", found.only_new)):
        more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
        rest += [f"{side} alone has {', '.join(names[:_MOST_NAMES])}{more}"] if names else []
    if not rest:
        return "every recorded number is the same"
    return "; ".join(["every number that ran natively, and that both have, is the same", *rest])


def _verdict(pair: CellPair) -> tuple[str, str] | None:
    """A verdict that changed, and how; None where it is the same or one was not judged."""
    old, new = (end_of(record) for record in pair)
    if old == new or UNJUDGED in (old, new):
        return None
    why = pair.new.verdict.reason if pair.new.verdict else ""
    worse = WORST_FIRST.index(new) < WORST_FIRST.index(old) and (old, new) != ("identical", "rounding")
    return "worse verdict" if worse else "other verdict", f"{old} -> {new}" + (f": {why}" if why else "")


def _figures(pair: CellPair) -> str:
    """What is left to say without recordings."""
    far = [record.output.rel_l2 if record.output else float("nan") for record in pair]
    return f"to its reference rel. L2 {far[0]:.3g} -> {far[1]:.3g}; a change that moves both sides alike is not seen"
