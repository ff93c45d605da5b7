"""What of a plan is finished already: in its own folder, or in another sweep of the same output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from sweeper.planning.plan import Plan, PlannedCell
from sweeper.records.cell import CellRecord, Status
from sweeper.records.store import Store


def finished_cells(plan: Plan, *, judged: bool | Literal["full"]) -> dict[str, tuple[Store, CellRecord]]:
    """Cell id -> where it lies and its record, of those cells of the plan that need not run again.

    A cell's id stands for all its choices and for its environment; with the same reference it is the same cell in any
    sweep.

    Args:
        plan: what is to be run.
        judged: as in `Store.finished`.
    """
    own = Store(plan.folder)
    others = _others(plan)
    found = {}
    for planned in plan.cells:
        record = own.finished(planned.cell_id, judged=judged)
        at = (own, record) if record is not None else _elsewhere(planned, others, judged=judged)
        if at is not None:
            found[planned.cell_id] = at
    return found


def _others(plan: Plan) -> list[Store]:
    """The other sweeps of the output folder: `OUTPUT_DIR/GRID/SWEEP`."""
    folders = sorted(path.parent for path in plan.folder.parents[1].glob("*/*/cells"))
    return [Store(folder) for folder in folders if folder != plan.folder]


def _elsewhere(
    planned: PlannedCell, others: Sequence[Store], *, judged: bool | Literal["full"]
) -> tuple[Store, CellRecord] | None:
    for store in others:
        with contextlib.suppress(ValidationError, OSError):  # of another version, or being written: it is run again
            record = store.finished(planned.cell_id, judged=judged)
            if record and record.status is Status.OK and record.reference_id == planned.reference_id:
                return store, record
    return None


def where(store: Store, plan: Plan) -> str:
    """`finished`, or in which other sweep."""
    return "finished" if store.folder == plan.folder else f"finished in {Path(*store.folder.parts[-2:])}"
