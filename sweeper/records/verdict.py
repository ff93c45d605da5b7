"""What a difference means and comes from, as records: the verdict in `cell.json`, and `explain/<cell_id>.json`."""

from __future__ import annotations

import math
from typing import Any

from sweeper.records.schema import SCHEMA_VERSION, Record

LEFT_OUT = "left out"
"""The name of the evidence that says which was not gathered."""


class EvidenceRecord(Record):
    """One figure that a verdict rests on: its name, its value, and what it means."""

    name: str
    value: float | str
    meaning: str


class CauseRecord(Record):
    """What a difference that is policy or semantic comes from, as far as a few forwards in the sweep tell.

    Attributes:
        what: what differs; None: nothing that was tried closes the difference, and `explain` looks further.
        put_back: what to type to put it back.
        closed_bitwise: with it put back, the outputs have the same bits.
        replay_before, replay_after: rel_l2 in the float64 replay without and with it put back (of compiled code:
            in float64, from what is written); None: not run.
        tried: names of what was put back.
        forwards: runs of a side that it took.
        cell_id: the cell in which it was run: the first of those with the same finding.
        error: why it could not be looked for.
    """

    what: str | None = None
    put_back: str | None = None
    closed_bitwise: bool = False
    replay_before: float | None = None
    replay_after: float | None = None
    tried: tuple[str, ...] = ()
    forwards: int = 0
    cell_id: str
    error: str | None = None


class VerdictRecord(Record):
    """What the difference means; `docs/verdict.md` defines the kinds.

    Attributes:
        kind: identical, rounding, policy, semantic or inconclusive.
        reason: one clause.
        decides: which run would settle an inconclusive one.
        evidence: the figures that it rests on.
        first_divergence: where it starts, and whether the module introduced or inherited it.
        texts: indices of the texts that it was judged on.
        cause: what closes the difference when it is put back; None for other kinds than policy and semantic.
        same_as: the cell that was judged in place of this one: reference, texts, state, code, settings and outputs are
            the same, bit for bit. None: it was judged itself.
    """

    kind: str
    reason: str
    decides: str | None = None
    evidence: tuple[EvidenceRecord, ...] = ()
    first_divergence: str | None = None
    texts: tuple[int, ...]
    cause: CauseRecord | None = None
    same_as: str | None = None

    @property
    def complete(self) -> bool:
        """Whether all evidence was gathered, also what the kind does not depend on."""
        return not any(evidence.name == LEFT_OUT for evidence in self.evidence)


class TriedRecord(Record):
    """One thing that was put back, and what a new run gave.

    Attributes:
        name, fix, group: what differs, what to type to put it back, what kind of thing it is.
        native: rel_l2 of the outputs with it put back; NaN where the model does not run so.
        native_closed: share of the difference that it takes away.
        bitwise: the outputs have the same bits.
        replay, collapsed: rel_l2 in the float64 replay, and whether it lies within the replay's noise.
        error: why it could not be run.
    """

    name: str
    fix: str
    group: str
    native: float
    native_closed: float
    bitwise: bool
    replay: float
    collapsed: bool
    error: str | None

    def __str__(self) -> str:
        if self.error is not None:
            return f"{self.name}: {self.error}"
        closed = "closed bitwise" if self.bitwise else f"{self.native_closed:.0%} closed"
        return f"{self.name}: {closed}" + ("" if math.isnan(self.replay) else f", {self.replay:.2g} left in float64")


class ExplanationRecord(Record):
    """`explain/<cell_id>.json`: why a cell differs from its reference.

    Attributes:
        cell_id, environment: which cell, and where it was run again.
        kind, reason: the verdict of that run.
        cause: a sentence: what differs, since when, by how much, put back by what, and the proof.
        closed_bitwise, put_back: whether what was put back closes it bitwise, and what to type; None if nothing does.
        since: the module and token where it starts.
        tried: everything that was run, best first.
    """

    schema_version: int = SCHEMA_VERSION
    cell_id: str
    kind: str
    reason: str
    cause: str
    closed_bitwise: bool
    put_back: str | None
    since: str | None
    tried: tuple[TriedRecord, ...]
    environment: dict[str, Any]
