"""Every published number beside what a sweep measured, with its status: looked up in the records alone."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sweeper.published import values_in_records
from sweeper.published.agreement import SAME_ORDER_FACTOR, Agreement, agreement
from sweeper.published.publication import (
    INPUTS,
    RAW_VALUES,
    SHARES,
    TRUTHS,
    Axes,
    Figure,
    Index,
    Number,
    Publication,
    Quantity,
)
from sweeper.records.cell import CellRecord, Sample, Status
from sweeper.records.sweep import Sweep

REPORTED_FILE = "reported.json"
_INPUT_AXES = ("layout", "positions")  # no other axis changes what the model reads


class Reproduction(BaseModel):
    """One published number and what came out here.

    Attributes:
        figure, index: which number of the publication; see `published.publication.Figure`.
        published: as printed.
        measured: None where nothing was; `why` says why not.
        status: by the rule `published.agreement`.
        cell_id: the cell that measured it.
        inputs: the name in `conf/inputs` of what that cell read.
        checkpoint: what it was measured on, or would have been.
        same_checkpoint: whether that is the published one.
        why: the reason where it is not reproduced, or not comparable.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    figure: str
    index: Index
    published: str
    measured: float | None = None
    status: Agreement
    cell_id: str | None = None
    inputs: str | None = None
    checkpoint: str | None = None
    same_checkpoint: bool = False
    why: str | None = None


class Reproductions(BaseModel):
    """`reported.json`: a publication, and every number of it beside what the sweep measured."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    report: Publication
    numbers: tuple[Reproduction, ...]

    def of(self, figure: Figure) -> list[Reproduction]:
        """The numbers of one figure, in the order of the figure."""
        return [number for number in self.numbers if number.figure == figure.id]

    def write(self, folder: Path) -> Path:
        """Writes `reported.json` beside the cells."""
        path = folder / REPORTED_FILE
        path.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return path


def compare_with_published(publication: Publication, sweep: Sweep) -> Reproductions:
    """Looks every published number up in a sweep; of several cells that fit a figure, the first of the plan counts."""
    lookup = _Lookup(publication, sweep)
    return Reproductions(
        report=publication,
        numbers=tuple(number for figure in publication.figures for number in lookup.figure(figure)),
    )


class _Missing(Exception):
    """A number that the sweep does not have; the message is the reason."""


class _Lookup:
    """The records of one sweep, as one publication asks for them."""

    def __init__(self, publication: Publication, sweep: Sweep) -> None:
        self._publication = publication
        self._sweep = sweep
        self._modules = cache(sweep.modules)

    def figure(self, figure: Figure) -> list[Reproduction]:
        """The numbers of a figure. Inputs that another tokenizer made are all the published ones, or say nothing."""
        numbers = [self._number(number) for number in figure.numbers()]
        if figure.quantity not in INPUTS or all(one.status is Agreement.BITWISE for one in numbers):
            return numbers
        ids = next((name for name in self._publication.inputs if name.endswith("_ids")), None)
        if numbers[0].same_checkpoint or numbers[0].measured is None or numbers[0].inputs == ids:
            return numbers
        why = f"the tokenizer of another checkpoint made other ids; give inputs={ids}"
        return [one.model_copy(update={"status": Agreement.NOT_COMPARABLE, "why": why}) for one in numbers]

    def _number(self, number: Number) -> Reproduction:
        figure = number.figure
        source = self._publication.source_of(figure)
        record: CellRecord | None = None
        measured, why = None, source.why_not
        if source.runs_here:
            try:
                record = self._record(figure)
                measured = self._measured(number, record)
            except _Missing as missing:
                why = str(missing)
        checkpoint = next((str(one.axes["checkpoint"]) for one in (record, *self._sweep.records) if one), None)
        same = checkpoint is not None and checkpoint == source.published_checkpoint
        status = agreement(number, measured, same_checkpoint=same)
        if measured is not None and status is Agreement.NOT_COMPARABLE:
            why = "single elements of an output mean nothing with other weights"
        elif measured is not None and status is Agreement.NOT_REPRODUCED:
            why = _apart(number, measured) + ("" if same else ", on another checkpoint")
        return Reproduction(
            figure=figure.id,
            index=number.index,
            published=number.printed,
            measured=measured,
            status=status,
            cell_id=None if record is None else record.cell_id,
            inputs=None if record is None else str(record.axes["inputs"]),
            checkpoint=checkpoint,
            same_checkpoint=same,
            why=why,
        )

    # ---- which cell ----

    def _record(self, figure: Figure) -> CellRecord:
        """The first cell that the figure fits; of a figure of one cell, it may be the reference of that one."""
        cell, reference = _asked_axes(self._publication, figure)
        fitting = [record for record in self._sweep.records if _fits(record, cell, reference)]
        if not fitting:
            against = f" against {_axes(reference)}" if reference is not None else ""
            raise _Missing(f"no cell of this sweep has {_axes(cell)}{against}")
        same_inputs = [record for record in fitting if self._read_the_same(record)]
        if not same_inputs:
            raise _Missing(f"the sweep read other inputs; give inputs={self._publication.inputs[0]}")
        ran = [record for record in same_inputs if record.status is Status.OK]
        if not ran:
            first = same_inputs[0]
            raise _Missing(f"{first.status.value}: {first.reason}")
        return ran[0]

    def _read_the_same(self, record: CellRecord) -> bool:
        return not self._publication.inputs or record.axes["inputs"] in self._publication.inputs

    # ---- which number ----

    def _measured(self, number: Number, record: CellRecord) -> float:
        quantity, index = number.figure.quantity, number.index
        if quantity in INPUTS:
            found = values_in_records.input_value(quantity, index, self._sample(number.figure, record), record)
        elif quantity in RAW_VALUES:
            found = values_in_records.output_element(quantity, index, self._sample(number.figure, record))
        elif quantity in values_in_records.MODULE_FIGURES:
            found = values_in_records.module_figure(quantity, index, self._modules(record.cell_id))
        elif quantity is Quantity.STATE_DICT_ALLCLOSE:
            found = values_in_records.state_allclose(record, str(index["tensor"]), self._modules(record.cell_id))
        else:
            found = values_in_records.cell_figure(quantity, record)
        if found is None:
            raise _Missing(f"the cell has no {quantity.value}{_place(index)}")
        return found

    def _sample(self, figure: Figure, record: CellRecord) -> Sample:
        cell, _ = _asked_axes(self._publication, figure)
        sample = record.sample if has(record.axes, cell) else record.reference_sample
        if sample is None:
            raise _Missing("the cell has no sample of its inputs and output")
        return sample


def _asked_axes(publication: Publication, figure: Figure) -> tuple[Axes, Axes | None]:
    """What the figure asks of its cell, and of the reference."""
    cell = publication.cell_of(figure)
    if figure.quantity in INPUTS:
        cell = {axis: value for axis, value in cell.items() if axis in _INPUT_AXES}
    return cell, publication.reference_of(figure)


def _fits(record: CellRecord, cell: Axes, reference: Axes | None) -> bool:
    if reference is None:
        return has(record.axes, cell) or has(record.reference_axes, cell)
    return has(record.axes, cell) and has(record.reference_axes, reference)


def has(axes: Axes, asked: Axes) -> bool:
    """Whether a cell's axes are as asked; those that are not asked for may be anything."""
    return all(axes.get(axis) == value for axis, value in asked.items())


def _apart(number: Number, measured: float) -> str:
    """Which line of the rule a number failed."""
    if not math.isfinite(measured):
        return "not finite"
    if number.figure.quantity in INPUTS | TRUTHS:
        return "another value"
    if 0 in (number.value, measured):
        return "zero equals only zero"
    apart = f"more than {SAME_ORDER_FACTOR:g} times apart"
    return f"{apart}, or so in what is left to 1" if number.figure.quantity in SHARES else apart


def _axes(axes: Axes) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in axes.items()) or "anything"


def _place(index: Index) -> str:
    place = ", ".join(f"{name} {label}" for name, label in index.items())
    return f" at {place}" if place else ""
