"""What a recording allows to say of a cell: figures in, a verdict with its evidence out (docs/recordings.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sweeper.recordings.counterfactuals import Base, Tried, counterfactuals
from sweeper.recordings.log_probabilities import RATIO_BOUNDS, Ratios
from sweeper.recordings.own_error import OverOwn
from sweeper.records.verdict import CauseRecord, EvidenceRecord, VerdictRecord
from sweeper.verdict.rules import Kind
from sweeper.verdict.thresholds import FLOOR_MULTIPLE

OVER_OWN = "recording's error over our own"
"""The name of the evidence that decides."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """All that was measured of a cell and a recording.

    Attributes:
        quantity: what was compared.
        others_differ: texts beyond those that were judged differ.
        found: the errors; None where our own run in float64 failed, and `error` says why.
        tried: counterfactuals, where the errors asked for some.
        ratios: of log-probabilities; None where either side has none.
        recorded_dtype, own_dtype: what both computed in; None: the recording does not say.
    """

    quantity: str
    others_differ: bool = False
    found: OverOwn | None
    error: str | None = None
    tried: tuple[Tried, ...] = ()
    ratios: Ratios | None = None
    recorded_dtype: str | None = None
    own_dtype: str

    @property
    def closing(self) -> Tried | None:
        """The counterfactual that explains the recording: of those within the bound the nearest."""
        closing = [one for one in self.tried if one.found is not None and one.found.ratio <= FLOOR_MULTIPLE]
        return min(closing, key=lambda one: one.found.ratio if one.found else math.inf, default=None)

    @property
    def coarser(self) -> bool:
        """The recording may have been made in a coarser dtype than our own run, whose error then is no measure."""
        own = _eps(self.own_dtype)
        recorded = _eps(self.recorded_dtype)
        return recorded > own if recorded is not None and own is not None else own is None or own < _eps("bfloat16")


def _eps(dtype: str | None) -> Any:
    known = getattr(torch, dtype or "", None)
    return torch.finfo(known).eps if isinstance(known, torch.dtype) and known.is_floating_point else None


def judge_recorded(
    base: Base, ratios: Ratios | None, recorded_dtype: str | None, *, others_differ: bool = False
) -> Judged:
    """Measures the errors, and tries counterfactuals where they are more than rounding."""
    found = base.found
    judged = Judged(
        quantity=base.quantity,
        others_differ=others_differ,
        found=found,
        ratios=ratios,
        recorded_dtype=recorded_dtype,
        own_dtype=str(base.cell.dtype),
    )
    if not found.counted or found.ratio <= FLOOR_MULTIPLE or judged.coarser:
        return judged
    tried = []
    for one in counterfactuals(base):
        tried.append(one)
        if one.found is not None and one.found.ratio <= FLOOR_MULTIPLE:
            break  # the cheap ones come first
    return Judged(**{**vars(judged), "tried": tuple(tried)})


def verdict_on(judged: Judged, texts: Sequence[int], cell_id: str, first_divergence: str | None) -> VerdictRecord:
    """The verdict: by how far the recording lies from our float64 run, in errors of our own run."""
    kind, reason, decides = _decide(judged)
    cause = None
    if kind is Kind.SEMANTIC:
        closing = judged.closing
        cause = CauseRecord(
            what=None if closing is None else f"in the recording {closing.what}",
            put_back=None if closing is None else closing.put_back,
            replay_before=judged.found.ratio if judged.found else None,
            replay_after=closing.found.ratio if closing and closing.found else None,
            tried=tuple(one.name for one in judged.tried),
            cell_id=cell_id,
        )
    return VerdictRecord(
        kind=kind,
        reason=reason,
        decides=decides,
        evidence=tuple(_evidence(judged)),
        first_divergence=None if kind is Kind.IDENTICAL or first_divergence is None else f"at {first_divergence}",
        texts=tuple(texts),
        cause=cause,
    )


def _decide(judged: Judged) -> tuple[Kind, str, str | None]:
    found = judged.found
    if found is None:
        return Kind.INCONCLUSIVE, f"no run in float64: {judged.error}", "a cell that runs in float64"
    if not found.counted:
        reason = f"no row of {judged.quantity} is finite in our own run: nothing can be measured"
        return Kind.INCONCLUSIVE, reason, "a cell, or texts, with finite outputs"
    if found.same and judged.others_differ:
        reason = f"the texts that were judged have the same {judged.quantity}, bit for bit, and others differ"
        return Kind.INCONCLUSIVE, reason, "a recording of the texts that differ"
    if found.same:
        return Kind.IDENTICAL, f"every recorded number of {judged.quantity} has the same bits", None
    far = f"the recording lies {found.ratio:.3g} times as far from our float64 run as our own run does"
    if found.ratio <= FLOOR_MULTIPLE:
        return Kind.ROUNDING, f"the same function, rounded differently: {far}", None
    if judged.coarser:
        given = judged.recorded_dtype or "a dtype that it does not state"
        decides = f"the cell in the recording's dtype: dtype={judged.recorded_dtype or 'bfloat16'}"
        return Kind.INCONCLUSIVE, f"{far}, but it was made in {given}, and this cell is {judged.own_dtype}", decides
    if judged.closing is not None:
        return Kind.SEMANTIC, f"another function: {far}; {judged.closing.name} closes it", None
    return Kind.SEMANTIC, f"another function: {far}, and nothing that was tried closes it", None


def _evidence(judged: Judged) -> list[EvidenceRecord]:
    found, evidence = judged.found, list[EvidenceRecord]()

    def add(name: str, value: float | str, meaning: str) -> None:
        evidence.append(EvidenceRecord(name=name, value=value, meaning=meaning))

    if found is not None:
        add(
            OVER_OWN,
            found.ratio,
            f"of {judged.quantity}, root mean square over tokens; up to {FLOOR_MULTIPLE:g} is rounding",
        )
        add("our own error", found.own, "distance of this cell's run from the same in float64, a token")
        add("recording's error", found.recorded, "its distance from our float64 run, a token")
        add("recording's error, median token", found.median, "over our own root mean square")
        text, position = found.worst
        where = "" if text is None else f"; text {text}" + ("" if position is None else f", position {position}")
        add("recording's error, worst token", found.most, f"over our own root mean square{where}")
        if found.nonfinite:
            add("not finite in the recording", float(found.nonfinite), "tokens that are finite in our own run")
    if judged.ratios is not None:
        for name, value, meaning in _of_ratios(judged.ratios):
            add(name, value, meaning)
    for one in judged.tried:
        if one.found is None:
            add(f"tried: {one.name}", "not run", one.error or "")
        else:
            add(f"tried: {one.name}", one.found.ratio, f"its error over our own if {one.what}")
    return evidence


def _of_ratios(ratios: Ratios) -> list[tuple[str, float, str]]:
    low, high = RATIO_BOUNDS
    found = [
        ("mean |Δ log p|", ratios.mean_abs, f"nats a token, recording against this cell, over {ratios.tokens} tokens"),
        ("exp of it", ratios.ratio, "what a token's ratio of probabilities is off by"),
        ("ratios outside", ratios.outside, f"share of tokens whose ratio lies outside [{low:g}, {high:g}]"),
        ("first token's |Δ log p|", ratios.first, "mean over texts; a template or a beginning token shows here"),
        ("later tokens' |Δ log p|", ratios.later, "mean over all others"),
    ]
    if ratios.one_sided:
        found.append(("log p on one side only", float(ratios.one_sided), "tokens, the other side is not finite there"))
    return found
