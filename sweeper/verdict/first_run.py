"""Both sides run once, and what of their outputs is compared from then on."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sweeper.comparator.observation import Observation
from sweeper.comparator.outputs import ModelOutputs, Part, same_bits, share
from sweeper.comparator.side import Side
from sweeper.verdict.first_divergence import Trace, trace
from sweeper.verdict.reference_evidence import ReferenceEvidence


@dataclass(frozen=True)
class FirstRun:
    """Two sides that give the same outputs, and their first runs.

    Attributes:
        reference, candidate: the sides, with the parts of their outputs that both give.
        base, native: what they gave.
        partly: outputs that are compared in part or not at all, because only one side gives the rest.
        uncompared: outputs of both sides of which nothing, or not all, can be compared.
    """

    reference: Side
    candidate: Side
    base: Observation
    native: Trace
    partly: dict[str, str]
    uncompared: dict[str, str]

    @property
    def sides(self) -> tuple[Side, Side]:
        return self.reference, self.candidate

    @property
    def same(self) -> bool:
        """Whether everything that was compared has the same bits: outputs and modules."""
        left, right = self.base.outputs, self.native.outputs
        return self.native.bitwise and all(same_bits(left[name], right[name]) for name in left)


def run_both(reference: Side, candidate: Side, evidence: ReferenceEvidence, *, full: bool) -> FirstRun:
    """Runs both, and again where only a part of an output is shared.

    Args:
        evidence: of the reference.
        full: compare each module, and run it on the reference's input; else none behind the first that differs.

    Raises:
        AlignmentError: they have no output in common; both sides are named.
    """
    base = evidence.observed(reference, beginning=not full)
    native = trace(base, candidate, own=full, until=None if full else 0.0)
    shared = share(base.outputs, native.outputs)
    uncompared = {**shared.uncompared, **_doubtful(base.outputs, native.outputs)}
    reference = replace(reference, parts=shared.reference)
    candidate = replace(candidate, parts=shared.candidate)
    if any(map(_leaves_out, shared.reference)):
        base = evidence.observed(reference, beginning=not full)
        native = trace(base, candidate, own=full, until=None if full else 0.0)
    else:
        base = replace(base, outputs=base.outputs.taken(shared.reference))
        native = replace(native, outputs=native.outputs.taken(shared.candidate))
    evidence.once(reference, "outputs", lambda: base.outputs)
    return FirstRun(reference, candidate, base, native, shared.partly, uncompared)


def _leaves_out(part: Part) -> bool:
    return part.columns is not None or part.last is not None


def _doubtful(reference: ModelOutputs, candidate: ModelOutputs) -> dict[str, str]:
    """What differs where a mask may hide it: [B, T] is a score of each token, or T features of each row."""
    pads = [(name, pads, candidate.at_pads.get(name)) for name, pads in reference.at_pads.items()]
    reason = "differs in the columns that the mask hides, if they are tokens"
    return {name: reason for name, one, other in pads if other is not None and not same_bits(one, other)}
