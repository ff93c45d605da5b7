"""What a comparison found: the sides, the figures and the verdict."""

from __future__ import annotations

from dataclasses import dataclass, field

from sweeper.comparator.side import Side
from sweeper.verdict.first_divergence import FirstDivergence, Trace
from sweeper.verdict.measured import Measured, OwnError
from sweeper.verdict.noise_floor import Floor
from sweeper.verdict.reference_evidence import ReferenceEvidence
from sweeper.verdict.repeatability import Random
from sweeper.verdict.rules import Verdict
from sweeper.verdict.state_changes import Provenance


@dataclass
class Compared:
    """Two sides that were compared, and the verdict.

    Attributes:
        reference, candidate: the two sides, for further runs.
        verdict: kind, reason, evidence.
        first_divergence: the first module that differs (by more than rounding, unless the verdict is rounding).
        native, replay_trace: module by module, as they ran and in the replay (None where it failed or was not needed).
        provenance: what differs in parameters and buffers.
        measured: the figures behind the verdict.
        floor: the noise floor of the noisier side.
        own: each module on the reference's arguments, by name; empty where the replay shows the difference anyway.
        random: the sides that do not give the same output twice.
        left: what is left once they do; None where both repeat.
        evidence: the reference's own runs.
    """

    reference: Side
    candidate: Side
    verdict: Verdict
    first_divergence: FirstDivergence | None
    native: Trace
    replay_trace: Trace | None
    provenance: Provenance
    measured: Measured
    floor: Floor
    own: dict[str, OwnError] = field(default_factory=dict)
    random: tuple[Random, ...] = ()
    left: Compared | None = None
    evidence: ReferenceEvidence = field(default_factory=ReferenceEvidence)
