"""The cheap part of looking for a cause: what the verdict already points to, put back in a few more forwards.

`explain` searches on where this ends: narrower, in pairs, in code.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

from sweeper.comparator.side import Outputs, Side, run
from sweeper.devices import out_of_memory
from sweeper.records.verdict import CauseRecord
from sweeper.verdict.causes.arguments import arguments_undone, call_counterfactuals
from sweeper.verdict.causes.compiled import compiled_counterfactuals
from sweeper.verdict.causes.counterfactual import Counterfactual, Pair
from sweeper.verdict.causes.switches import (
    attention_counterfactuals,
    pooling_counterfactuals,
    switch_counterfactuals,
    training_counterfactuals,
)
from sweeper.verdict.causes.tensors import asked_undone, put_back, state_counterfactuals
from sweeper.verdict.compared import Compared
from sweeper.verdict.compiled_code import in_float64_too
from sweeper.verdict.first_divergence import outputs_rel_l2
from sweeper.verdict.float64_replay import replayed
from sweeper.verdict.measured import CompiledCode
from sweeper.verdict.repeatability import SIDES
from sweeper.verdict.rules import Kind
from sweeper.verdict.state_changes import Change, Provenance
from sweeper.verdict.thresholds import FLOOR_MULTIPLE
from sweeper.verdict.wording import some_of

FORWARDS = 4  # of one side on the texts that were judged: what a distinct cause may cost


def likely_cause(comparison: Compared, candidates: list[Counterfactual], cell_id: str) -> CauseRecord:
    """Puts back one after another of what `pointed_at` lists, until something closes the difference.

    Args:
        comparison: of a verdict that is policy or semantic.
        candidates: what to put back, likeliest first.
        cell_id: of the cell that was compared, for the record.
    """
    trials = _Trials(comparison, cell_id)
    rounded_unasked = _measured_already(comparison)
    for counterfactual in candidates:
        closed = trials.run(counterfactual, by_replay=rounded_unasked)
        if closed is not None:
            return closed
    return CauseRecord(cell_id=cell_id, tried=tuple(trials.tried), forwards=trials.forwards)


def pointed_at(comparison: Compared) -> list[Counterfactual]:
    """What the verdict points to: tensors that hold other values, or what the two sides were told to do otherwise."""
    found, pair = comparison.provenance, Pair(comparison.reference, comparison.candidate)
    if (miscompiled := comparison.measured.miscompiled) and len(miscompiled) == 1:
        return compiled_counterfactuals(pair, [miscompiled[0].side])[-1:]
    if comparison.verdict.kind is Kind.POLICY and found.rounded:
        return [_rounded(found)]
    if comparison.verdict.kind not in (Kind.POLICY, Kind.SEMANTIC):
        return []
    listed = [*training_counterfactuals(pair), *pooling_counterfactuals(pair)]
    listed += [_other_values(found)] if found.other else []
    listed += [*call_counterfactuals(pair, found), *switch_counterfactuals(pair), *attention_counterfactuals(pair)]
    return [counterfactual for counterfactual in listed if not counterfactual.wide]


def _measured_already(comparison: Compared) -> float | None:
    """What is left in the replay without the rounding that nobody asked for: known of every verdict that is policy."""
    replay = comparison.measured.replay
    return replay.policy if comparison.verdict.kind is Kind.POLICY and replay is not None else None


def _rounded(found: Provenance) -> Counterfactual:
    changes = list(found.rounded.values())
    dtypes = " and ".join(dict.fromkeys(str(change.rounded_to).removeprefix("torch.") for change in changes))
    were = "was" if len(changes) == 1 else "were"
    what = f"{_names(changes)} {were} rounded to {dtypes}, and nobody asked for that"
    fix = state_counterfactuals(Provenance(rounded=found.rounded))[0].fix
    return Counterfactual(what, fix, "state", _with(changes))


def _other_values(found: Provenance) -> Counterfactual:
    changes = list(found.other.values())
    what = f"{_names(changes)} {'holds' if len(changes) == 1 else 'hold'} other values"
    return Counterfactual(what, "copy the reference's values over", "state", _with(changes))


def _names(changes: list[Change]) -> str:
    return some_of([change.name for change in changes])


def _with(changes: list[Change]) -> Callable[[Pair], AbstractContextManager[Pair]]:
    @contextlib.contextmanager
    def apply(pair: Pair) -> Iterator[Pair]:
        with put_back(pair.candidate.model, changes):
            yield pair

    return apply


class _Trials:
    """Runs counterfactuals within a budget; the reference's own runs, which most leave alone, are there already.

    Attributes:
        tried: names of what was put back. forwards: runs of a side so far.
    """

    def __init__(self, comparison: Compared, cell_id: str) -> None:
        self.tried: list[str] = []
        self.forwards = 0
        self._comparison = comparison
        self._cell_id = cell_id
        self._pair = Pair(comparison.reference, comparison.candidate)

    def run(self, counterfactual: Counterfactual, *, by_replay: float | None) -> CauseRecord | None:
        """The cause, if putting this back closes the difference; None if it does not, or cannot be run.

        Args:
            counterfactual: what is put back.
            by_replay: what is left with it put back in the replay, where that was measured before.
        """
        before = self.forwards
        bitwise = False
        replay, miscompiled = self._comparison.measured.replay, self._comparison.measured.miscompiled
        try:
            with counterfactual.apply(self._pair) as pair:
                bitwise, near = self._natively(pair)
                if miscompiled and not bitwise:
                    by_replay = self._off_what_is_written(pair, miscompiled[0])
                elif not bitwise and near and by_replay is None and self._affords(pair):
                    by_replay = self._left(pair, precise=True)
        except Exception as error:  # a combination that the model cannot run closes nothing
            if out_of_memory(error):
                raise
            return None
        finally:
            if self.forwards > before:
                self.tried.append(counterfactual.name)
        if miscompiled:
            replay_before, bound = miscompiled[0].exact, miscompiled[0].exact_bound
        else:
            replay_before, bound = (replay.asked, replay.weak_bound) if replay is not None else (None, math.nan)
        collapses = by_replay is not None and by_replay <= bound
        if not bitwise and not collapses:
            return None
        return CauseRecord(
            cell_id=self._cell_id,
            what=counterfactual.name,
            put_back=counterfactual.fix,
            closed_bitwise=bitwise,
            replay_before=replay_before if by_replay is not None else None,
            replay_after=by_replay if replay_before is not None else None,
            tried=tuple(self.tried),
            forwards=self.forwards,
        )

    def _off_what_is_written(self, pair: Pair, code: CompiledCode) -> float | None:
        """How far that side's code now is off what is written, in float64; None where it was not run so before."""
        if code.exact is None:
            return None
        self.forwards += 2
        side = dict(zip(SIDES, pair, strict=True))[code.side]
        return in_float64_too(side, replace(code, exact=None)).exact

    def _natively(self, pair: Pair) -> tuple[bool, bool]:
        """Whether the outputs have the same bits, and whether they are so near that a replay is worth its forwards.

        Where a dtype that was asked for hides it, only the replay tells; where the replay shows nothing, only bits.
        """
        measured = self._comparison.measured
        if measured.asked:
            return False, measured.by_replay
        if not self._affords(pair):
            return False, False
        rest = self._left(pair, precise=False)
        known = not math.isnan(measured.floor)  # where the replay decides, the floor is not always measured
        near = rest <= FLOOR_MULTIPLE * measured.floor if known else rest < measured.native
        return rest == 0, measured.by_replay and near

    def _affords(self, pair: Pair) -> bool:
        return self.forwards + (1 if pair.reference is self._pair.reference else 2) <= FORWARDS

    def _left(self, pair: Pair, *, precise: bool) -> float:
        """rel_l2 of the outputs with something put back."""
        if pair.reference is not self._pair.reference:
            reference = self._outputs(pair.reference, precise=precise, is_reference=True)
        elif precise:
            reference = self._comparison.evidence.replay_outputs(pair.reference, self._comparison.provenance)
        else:
            reference = self._comparison.evidence.outputs(pair.reference)
        return outputs_rel_l2(reference, self._outputs(pair.candidate, precise=precise, is_reference=False))

    def _outputs(self, side: Side, *, precise: bool, is_reference: bool) -> Outputs:
        self.forwards += 1
        if not precise:
            return run(side)
        found = self._comparison.provenance
        undone = side if is_reference else arguments_undone(self._pair.reference, side, found)
        with asked_undone(side.model, found, reference=is_reference), replayed(undone) as (lifted, _):
            return run(lifted)
