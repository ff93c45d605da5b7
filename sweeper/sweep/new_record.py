"""The record of a cell as it begins, and as it ends."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sweeper.errors import SweeperError
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import CellRecord, PairMeasures, Status


def begun(planned: PlannedCell, environment: dict[str, Any]) -> CellRecord:
    """The record of a cell that is about to run: what was asked for, and nothing measured."""
    return CellRecord(
        cell_id=planned.cell_id,
        status=Status.OK,
        attempt=uuid.uuid4().hex[:8],
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        axes=planned.cell.axes(),
        choices=planned.cell.model_dump(mode="json"),
        reference_id=planned.reference_id,
        reference_axes=planned.reference.axes(),
        reference_choices=planned.reference.model_dump(mode="json"),
        environment=environment,
    )


def ended(record: CellRecord, status: Status, reason: str, trace: str | None = None) -> CellRecord:
    """The record of a cell that ended otherwise than well."""
    return record.model_copy(update={"status": status, "reason": reason, "traceback": trace})


def checked(record: CellRecord, output: PairMeasures) -> CellRecord:
    """The record, failed where nothing but NaN came out."""
    if output.numel and output.candidate_nan == output.numel:
        return ended(record, Status.FAILED, "every element of the output is NaN")
    return record


def reason_of(error: Exception) -> str:
    """One line: what a table can show."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if isinstance(error, SweeperError) else f"{type(error).__name__}: {text}"
