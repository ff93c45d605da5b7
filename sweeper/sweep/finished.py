"""What of a plan is finished already: in its own folder, or in another sweep of the same output folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from sweeper.errors import ConfigError, DamagedError
from sweeper.planning.plan import Plan, PlannedCell
from sweeper.records.cell import CellRecord, Status
from sweeper.records.sharing import Shared
from sweeper.records.store import Store


def finished_cells(
    plan: Plan, *, judged: bool | Literal["full"], recorded: bool = False, say: Callable[[str], None]
) -> dict[str, tuple[Store, CellRecord]]:
    """Cell id -> where it lies and its record, of those cells of the plan that need not run again.

    A cell's id stands for all its choices and for its environment; with the same reference it is the same cell in any
    sweep.

    Args:
        plan: what is to be run.
        judged: as in `Store.finished`.
        recorded: a cell of which this folder has no recording runs again.
        say: takes a line for every cell whose files are not what was written.

    Raises:
        ConfigError: a folder that was given a name holds cells of another reference.
    """
    own = Store(plan.folder, recorded=recorded)
    others = [] if recorded else _others(plan)
    found, shared = {}, Shared()
    for planned in plan.cells:
        record = None
        try:
            record = own.read(planned.cell_id)
        except DamagedError as error:
            say(f"{error}; its cell runs again")
        _check_reference(plan, planned, record)
        if record is not None and own.need_not_run(record, judged=judged):
            found[planned.cell_id] = own, shared.record(record)
        elif at := _elsewhere(planned, others, judged=judged):
            found[planned.cell_id] = at[0], shared.record(at[1])
    return found


def _check_reference(plan: Plan, planned: PlannedCell, record: CellRecord | None) -> None:
    """A folder's cells are found by their ids, which do not tell what they were compared with."""
    if record is not None and record.status is not Status.FAILED and record.reference_id != planned.reference_id:
        raise ConfigError(
            f"sweep={plan.sweep}: {plan.folder} holds cells that were compared with another reference; "
            "type another name: sweep=NAME"
        )


def _others(plan: Plan) -> list[Store]:
    """The other sweeps of the output folder: `OUTPUT_DIR/GRID/SWEEP`."""
    folders = sorted(path.parent for path in plan.folder.parents[1].glob("*/*/cells"))
    return [Store(folder) for folder in folders if folder != plan.folder]


def _elsewhere(
    planned: PlannedCell, others: Sequence[Store], *, judged: bool | Literal["full"]
) -> tuple[Store, CellRecord] | None:
    for store in others:
        with contextlib.suppress(DamagedError, OSError):  # it runs again, in this sweep
            record = store.finished(planned.cell_id, judged=judged)
            if record and record.status is Status.OK and record.reference_id == planned.reference_id:
                return store, record
    return None


def where(store: Store, plan: Plan) -> str:
    """`finished`, or in which other sweep."""
    return "finished" if store.folder == plan.folder else f"finished in {Path(*store.folder.parts[-2:])}"
