"""The record of a cell as it begins, and as it ends."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

from sweeper.errors import SweeperError
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import RECORDED, CellRecord, PairMeasures, Status
from sweeper.records.recording import read_texts


def begun(planned: PlannedCell, environment: dict[str, Any], at: datetime | None = None) -> CellRecord:
    """The record of a cell that begins: what was asked for, and nothing measured.

    Args:
        at: when it began; None: now.
    """
    return CellRecord(
        cell_id=planned.cell_id,
        status=Status.OK,
        attempt=uuid.uuid4().hex[:8],
        started_at=(at or datetime.now(UTC)).isoformat(timespec="seconds"),
        axes=planned.cell.axes(),
        choices=planned.cell.model_dump(mode="json"),
        reference_id=planned.reference_id,
        reference_axes=planned.reference.axes() | _recorded(planned),
        reference_choices=planned.reference.model_dump(mode="json"),
        environment=environment,
    )


def _recorded(planned: PlannedCell) -> dict[str, str | bool]:
    """What the recording says of its axes, where a cell is compared with one."""
    if planned.recording is None:
        return {}
    _, about = read_texts(planned.recording)
    stated = about.get("axes") if isinstance(about.get("axes"), dict) else {}
    known = {"dtype": about["dtype"]} if isinstance(about.get("dtype"), str) else {}
    own = planned.cell.axes()
    taken = {axis: value for axis, value in {**known, **(stated or {})}.items() if axis in own and axis != "inputs"}
    return {**taken, RECORDED: planned.recording.name}


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
