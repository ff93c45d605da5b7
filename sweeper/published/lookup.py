"""Every published number beside what a sweep measured, with its status: looked up in the records alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import compress, islice
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from sweeper.published.agreement import Agreement, agreement
from sweeper.published.publication import INPUTS, RAW_VALUES, Axes, Figure, Index, Number, Publication, Quantity
from sweeper.records.cell import CellRecord, ModuleRecord, PairMeasures, Status
from sweeper.records.sample import Sample
from sweeper.records.sweep import Sweep

REPORTED_FILE = "reported.json"
_INPUT_AXES = ("layout", "positions")  # no other axis changes what the model reads
_OF_MODULES: dict[Quantity, Callable[[PairMeasures], float]] = {
    Quantity.MODULE_MEAN_ABS: lambda measures: measures.mean_abs,
    Quantity.MODULE_MAX_ABS: lambda measures: measures.max_abs,
}


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


def has(axes: Axes, asked: Axes) -> bool:
    """Whether a cell's axes are as asked; those that are not asked for may be anything."""
    return all(axes.get(axis) == value for axis, value in asked.items())


def fits(record: CellRecord, cell: Axes, reference: Axes | None) -> bool:
    """Whether a record compares such cells; without a reference, whether either of its cells is so."""
    if reference is None:
        return has(record.axes, cell) or has(record.reference_axes, cell)
    return has(record.axes, cell) and has(record.reference_axes, reference)


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
        source = self._publication.sources[number.figure.source]
        record: CellRecord | None = None
        measured, missing = None, source.why_not
        if source.runs_here:
            try:
                record = self._record(number.figure)
                measured = self._measured(number, record)
            except _Missing as reason:
                missing = str(reason)
        checkpoint = next((str(one.axes["checkpoint"]) for one in (record, *self._sweep.records) if one), None)
        same = checkpoint is not None and checkpoint == source.published_checkpoint
        status, why = agreement(number, measured, same_checkpoint=same)
        return Reproduction(
            figure=number.figure.id,
            index=number.index,
            published=number.printed,
            measured=measured,
            status=status,
            cell_id=record.cell_id if record else None,
            inputs=str(record.axes["inputs"]) if record else None,
            checkpoint=checkpoint,
            same_checkpoint=same,
            why=missing if measured is None else why,
        )

    def _record(self, figure: Figure) -> CellRecord:
        """The first cell that the figure fits; of a figure of one cell, it may be the reference of that one."""
        cell, reference = self._cell_of(figure), self._publication.reference_of(figure)
        fitting = [record for record in self._sweep.records if fits(record, cell, reference)]
        if not fitting:
            against = f" against {_axes(reference)}" if reference is not None else ""
            raise _Missing(f"no cell of this sweep has {_axes(cell)}{against}")
        inputs = self._publication.inputs
        same_inputs = [record for record in fitting if not inputs or record.axes["inputs"] in inputs]
        if not same_inputs:
            raise _Missing(f"the sweep read other inputs; give inputs={inputs[0]}")
        ran = [record for record in same_inputs if record.status is Status.OK]
        if not ran:
            raise _Missing(f"{same_inputs[0].status.value}: {same_inputs[0].reason}")
        return ran[0]

    def _cell_of(self, figure: Figure) -> Axes:
        cell = self._publication.cell_of(figure)
        inputs = {axis: value for axis, value in cell.items() if axis in _INPUT_AXES}
        return inputs if figure.quantity in INPUTS else cell

    def _measured(self, number: Number, record: CellRecord) -> float:
        """What the record says; one that does not have the number, or does not decide it, has none."""
        quantity, index = number.figure.quantity, number.index
        if quantity in INPUTS:
            found = _input_value(quantity, index, self._sample(number.figure, record), record)
        elif quantity in RAW_VALUES:
            found = _output_element(quantity, index, self._sample(number.figure, record))
        elif quantity in _OF_MODULES:
            found = _module_figure(quantity, index, self._modules(record.cell_id))
        elif quantity is Quantity.STATE_DICT_ALLCLOSE:
            found = _state_allclose(record, str(index["tensor"]), self._modules(record.cell_id))
        else:
            found = _cell_figure(quantity, record)
        if found is None:
            place = ", ".join(f"{name} {label}" for name, label in index.items())
            raise _Missing(f"the cell has no {quantity.value}" + (f" at {place}" if place else ""))
        return found

    def _sample(self, figure: Figure, record: CellRecord) -> Sample:
        sample = record.sample if has(record.axes, self._cell_of(figure)) else record.reference_sample
        if sample is None:
            raise _Missing("the cell has no sample of its inputs and output")
        return sample


def _axes(axes: Axes) -> str:
    return ", ".join(f"{axis}={value}" for axis, value in axes.items()) or "anything"


# ---- what a record says of a quantity; None where it does not have it, or does not decide it ----------------------


def _input_value(quantity: Quantity, index: Index, sample: Sample, record: CellRecord) -> float | None:
    """A token id by text and token; or an element of an argument, or its shape, where there was one call."""
    if "text" in index:
        return _at(_texts(sample, record), index["text"], index["token"])
    if len(sample.calls) != 1:
        return None  # rows of which call?
    (call,) = sample.calls
    arguments = {Quantity.ATTENTION_MASK: call.attention_mask, Quantity.POSITION_IDS: call.position_ids}
    table = [[float(number) for number in row.split()] for row in arguments.get(quantity, call.input_ids) or ()]
    if quantity is Quantity.INPUT_SHAPE:
        return _at([[len(table), len(table[0])]], 0, index["dimension"])
    return _at(table, index["row"], index["column"])


def _texts(sample: Sample, record: CellRecord) -> list[list[float]]:
    """The ids of each text: in every layout, the real tokens row by row are the texts one after another."""
    ids: list[float] = []
    for call in sample.calls:
        masks = call.attention_mask or ["1 " * len(row.split()) for row in call.input_ids]
        for row, mask in zip(call.input_ids, masks, strict=True):
            ids += compress(map(float, row.split()), map(int, mask.split()))
    rest = iter(ids)
    return [list(islice(rest, text.tokens)) for text in record.texts]


def _output_element(quantity: Quantity, index: Index, sample: Sample) -> float | None:
    """One element of the output, of a text or of a row of the padded block."""
    corners, outer, inner = (
        (sample.texts, "text", "token") if quantity is Quantity.OUTPUT_VALUE else (sample.padded_rows, "row", "column")
    )
    corner = int(index[outer])
    return corners[corner].at(int(index[inner]), int(index["feature"])) if corner < len(corners) else None


def _module_figure(quantity: Quantity, index: Index, modules: Sequence[ModuleRecord]) -> float | None:
    """A figure of one module's output, by layer and kind."""
    layers = 1 + max((module.layer for module in modules if module.layer is not None), default=-1)
    layer = int(index["layer"])
    place = (layer + layers * (layer < 0), index["kind"])
    found = (module.measures for module in modules if (module.layer, module.kind) == place)
    return next(map(_OF_MODULES[quantity], found), None)


def _cell_figure(quantity: Quantity, record: CellRecord) -> float | None:
    """A figure of the output or of the state, in which a tied parameter is listed under each of its names."""
    output, state = record.output, record.state
    if output is None or state is None:
        return None
    found: dict[Quantity, float | None] = {
        Quantity.OUTPUT_EQUAL_FRACTION: output.equal_fraction,
        Quantity.OUTPUT_MEAN_ABS: output.mean_abs,
        Quantity.OUTPUT_MAX_ABS: output.max_abs,
        Quantity.OUTPUT_RMS: output.rms,
        Quantity.OUTPUT_SUM_ABS: output.mean_abs * output.finite,
        Quantity.OUTPUT_ALLCLOSE: _allclose(output),
        Quantity.KL_MAX: record.language.kl_max if record.language else None,
        Quantity.STATE_DICT_TENSORS: state.parameters,
        Quantity.STATE_DICT_EQUAL: state.parameters_equal,
        Quantity.STATE_DICT_EQUAL_FRACTION: state.parameters_equal / state.parameters,
    }
    return found.get(quantity)


def _allclose(output: PairMeasures) -> float | None:
    """torch.allclose with its own defaults, rtol 1e-5 and atol 1e-8, as far as the record decides it."""
    if output.equal_fraction == 1:
        return 1.0
    if output.nonfinite_mismatch:
        return 0.0
    off = output.worst_reference is not None and output.max_abs > 1e-8 + 1e-5 * abs(output.worst_reference)
    return 0.0 if off else None


def _state_allclose(record: CellRecord, tensor: str, modules: Sequence[ModuleRecord]) -> float | None:
    """Whether a parameter is the same on both sides: True, or undecided where its values are not all equal."""
    if record.state is None or tensor.rpartition(".")[0] not in {module.name for module in modules}:
        return None
    unequal = {entry.name for entry in record.state.differing if not entry.values_equal}
    return None if tensor in unequal else 1.0


def _at(table: Sequence[Sequence[float]], row: int | str, column: int | str) -> float | None:
    try:
        return table[int(row)][int(column)]
    except IndexError:
        return None
