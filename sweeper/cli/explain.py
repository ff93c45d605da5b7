"""`sweeper explain SWEEP CELL`: runs a stored cell and its reference again, and looks for the cause."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from sweeper.cli.arguments import Arguments
from sweeper.errors import ConfigError, UnsupportedError
from sweeper.records.cell import RECORDED, CellRecord
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep
from sweeper.records.verdict import ExplanationRecord, TriedRecord

if TYPE_CHECKING:
    from sweeper.config import Weights

Explained = TypeVar("Explained")


def main(arguments: Sequence[str]) -> int:
    """Explains the cell that the arguments name; returns the exit code.

    Raises:
        SweeperError: bad input, or the cell could not be run.
    """
    parser = Arguments(
        prog="sweeper explain",
        description="Why a cell differs from its reference: one thing is put back at a time, and the cell runs again.",
    )
    parser.add_argument("sweep", type=Path, metavar="SWEEP", help="a sweep's folder: outputs/<grid>/<sweep>")
    parser.add_argument("cell", metavar="CELL", help="a cell's id, or its first characters")
    asked = parser.parse_args(arguments)
    explain_cell(asked.sweep, asked.cell)
    return 0


def explain_cell(folder: Path, prefix: str) -> ExplanationRecord:
    """Explains a cell, prints what was found and keeps it beside the sweep's cells.

    Raises:
        ConfigError: no such sweep or cell, or a cell that has nothing to explain.
        UnsupportedError: memory ran out; no other error is turned into it.
    """
    record = Sweep.read(folder).find(prefix)
    if RECORDED in record.reference_axes:
        again = f"python -m sweeper report {folder} --cell {record.cell_id}"
        raise ConfigError(f"{record.cell_id}: compared with a recording; what was tried is in its verdict: {again}")
    if record.output is None:
        raise ConfigError(f"{record.cell_id}: {record.status.value}, nothing was compared ({record.reason})")
    try:
        explanation = _explain(record)
    except Exception as error:
        from sweeper.devices import out_of_memory  # torch: where memory ran out, it has long been imported

        if not out_of_memory(error):
            raise
        less = "explain it on a machine with more memory, or run it again with fewer or shorter texts (inputs=...)"
        raise UnsupportedError(f"{record.cell_id}: memory ran out, which says nothing about it; {less}") from error
    Store(folder).write_explanation(explanation)
    _print(record, explanation)
    return explanation


def _explain(record: CellRecord) -> ExplanationRecord:
    # Hydra, torch and transformers: not for a wrong id
    from sweeper.config import Cell, parse
    from sweeper.environment import environment
    from sweeper.planning.plan import PlannedCell
    from sweeper.sweep.judging import telling_texts
    from sweeper.sweep.runner import Runner
    from sweeper.verdict.comparison import Comparison
    from sweeper.verdict.explain import Explanation

    planned = PlannedCell(
        cell=parse(Cell, record.choices),
        cell_id=record.cell_id,
        reference=parse(Cell, record.reference_choices),
        reference_id=record.reference_id,
        unsupported=None,
    )
    everything = [text.text for text in record.texts]
    texts = record.verdict.texts if record.verdict else telling_texts(record.texts, [everything])[0]

    def explained(weights: Weights) -> tuple[Comparison, Explanation]:
        say = functools.partial(print, file=sys.stderr)
        comparison = Runner(environment(planned.cell.device), weights=weights, say=say).comparison(planned, texts)
        return comparison, comparison.explain()

    comparison, found = _where_it_fits(explained)
    return ExplanationRecord(
        cell_id=record.cell_id,
        kind=comparison.verdict.kind,
        reason=comparison.verdict.reason,
        cause=found.cause,
        closed_bitwise=found.closing is not None and found.closing.bitwise,
        put_back=None if found.closing is None else found.closing.fix,
        since=None if found.since is None else str(found.since),
        tried=tuple(TriedRecord(**vars(tried)) for tried in found.tried),
        environment=environment(planned.cell.device),
    )


def _where_it_fits(explained: Callable[[Weights], Explained]) -> Explained:
    """What is found with the weights in memory; where that runs out, on all GPUs, in the end streamed."""
    import torch

    from sweeper.devices import out_of_memory

    ways: list[Weights] = ["resident", *(("spread",) if torch.cuda.device_count() > 1 else ()), "streamed"]
    for weights in ways[:-1]:
        try:
            return explained(weights)
        except Exception as error:
            if not out_of_memory(error):
                raise
            traceback.clear_frames(error.__traceback__)  # they hold the models
    return explained(ways[-1])


def _print(record: CellRecord, explanation: ExplanationRecord) -> None:
    from sweeper.reports.terminal import output_console, sentence

    out = output_console()
    sentence(out, f"{explanation.kind.upper()}: {explanation.reason}", "bold")
    sentence(out, explanation.cause)
    out.print()
    sentence(out, f"{len(explanation.tried)} changes were run, the best first:")
    for tried in explanation.tried:
        sentence(out, str(tried), indent=2)
