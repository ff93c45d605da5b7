"""What a comparison found: the sides, the figures and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

from sweeper.comparator.side import Side
from sweeper.verdict.first_divergence import FirstDivergence, Trace
from sweeper.verdict.noise_floor import Floor
from sweeper.verdict.rules import Measured, Verdict
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
