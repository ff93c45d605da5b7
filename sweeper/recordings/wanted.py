"""What is recorded of a cell, and where it goes. Imports no torch: a plan asks this too."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sweeper.planning.plan import Plan
from sweeper.records.recording import Recording
from sweeper.records.store import Store

if TYPE_CHECKING:
    from sweeper.config import Settings


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is recorded of a cell.

    Attributes:
        patterns: of the names of modules whose outputs are recorded too.
        evidence: also floors and the run in float64, which take some ten more forwards.
        most_mib: what the recording may take. Outputs come first, then log-probabilities, hidden states and embeddings
            in float64, modules (of as many texts as fit), and logits in float64; what does not fit is named.
    """

    patterns: tuple[str, ...] = ()
    evidence: bool = False
    most_mib: float = 64

    def module(self, name: str) -> bool:
        """Whether the output of the module of this name is recorded."""
        return any(fnmatch.fnmatchcase(name, pattern) for pattern in self.patterns)


@dataclass(frozen=True, kw_only=True)
class Recordings:
    """Where the cells of a sweep are recorded: a file a cell.

    Attributes:
        sweep: the folder of the sweep, which holds them in `recordings/`.
        wanted: of each cell.
    """

    sweep: Path
    wanted: Wanted

    def write(self, cell_id: str, recording: Recording) -> None:
        """Writes the recording of a cell in its place."""
        recording.write(Store(self.sweep).recording(cell_id))


def recordings_of(plan: Plan, settings: Settings) -> Recordings | None:
    """Where the cells of a plan are recorded; None where nobody asked for it."""
    if not settings.record:
        return None
    wanted = Wanted(patterns=("*",), evidence=True, most_mib=settings.record_mib)
    return Recordings(sweep=plan.folder, wanted=wanted)
