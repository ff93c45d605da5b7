"""Looks up in a record what a `Quantity` names. None: the record does not have it, or does not decide it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sweeper.published.publication import Index, Quantity
from sweeper.records.cell import CallRecord, CellRecord, ModuleRecord, PairMeasures, Sample

MODULE_FIGURES: dict[Quantity, Callable[[PairMeasures], float]] = {
    Quantity.MODULE_MEAN_ABS: lambda measures: measures.mean_abs,
    Quantity.MODULE_MAX_ABS: lambda measures: measures.max_abs,
}


def input_value(quantity: Quantity, index: Index, sample: Sample, record: CellRecord) -> float | None:
    """A token id by text and token; or an element of an argument, or its shape, where there was one call."""
    if "text" in index:
        return _at(_texts(sample, record), index["text"], index["token"])
    if len(sample.calls) != 1:
        return None  # rows of which call?
    table = [[float(number) for number in row.split()] for row in _argument(quantity, sample.calls[0])]
    if quantity is Quantity.INPUT_SHAPE:
        return _at([[len(table), len(table[0])]], 0, index["dimension"])
    return _at(table, index["row"], index["column"])


def _argument(quantity: Quantity, call: CallRecord) -> tuple[str, ...]:
    rows = {Quantity.ATTENTION_MASK: call.attention_mask, Quantity.POSITION_IDS: call.position_ids}
    return rows.get(quantity, call.input_ids) or ()


def _texts(sample: Sample, record: CellRecord) -> list[list[float]]:
    """The ids of each text: in every layout, the real tokens row by row are the texts one after another."""
    ids: list[float] = []
    for call in sample.calls:
        masks = call.attention_mask or (None,) * len(call.input_ids)
        for row, mask in zip(call.input_ids, masks, strict=True):
            tokens = row.split()
            kept = mask.split() if mask else ["1"] * len(tokens)
            ids += [float(token) for token, keep in zip(tokens, kept, strict=True) if keep == "1"]
    texts, start = [], 0
    for text in record.texts:
        texts.append(ids[start : start + text.tokens])
        start += text.tokens
    return texts


def output_element(quantity: Quantity, index: Index, sample: Sample) -> float | None:
    """One element of the output, of a text or of a row of the padded block."""
    corners, outer, inner = (
        (sample.texts, "text", "token") if quantity is Quantity.OUTPUT_VALUE else (sample.padded_rows, "row", "column")
    )
    corner = int(index[outer])
    return corners[corner].at(int(index[inner]), int(index["feature"])) if corner < len(corners) else None


def module_figure(quantity: Quantity, index: Index, modules: Sequence[ModuleRecord]) -> float | None:
    """A figure of one module's output, by layer and kind."""
    layers = 1 + max((module.layer for module in modules if module.layer is not None), default=-1)
    layer, kind = int(index["layer"]), index["kind"]
    place = (layer + layers * (layer < 0), kind)
    found = (module.measures for module in modules if (module.layer, module.kind) == place)
    return next(map(MODULE_FIGURES[quantity], found), None)


def cell_figure(quantity: Quantity, record: CellRecord) -> float | None:
    """A figure of the output or of the state.

    A `state_dict` lists a tied parameter under each of its names, and so does `StateFigures`.
    """
    output, state, language = record.output, record.state, record.language
    if output is None or state is None:
        return None
    found: dict[Quantity, float | None] = {
        Quantity.OUTPUT_EQUAL_FRACTION: output.equal_fraction,
        Quantity.OUTPUT_MEAN_ABS: output.mean_abs,
        Quantity.OUTPUT_MAX_ABS: output.max_abs,
        Quantity.OUTPUT_SUM_ABS: output.mean_abs * output.finite,
        Quantity.OUTPUT_ALLCLOSE: _allclose(output),
        Quantity.KL_MAX: language.kl_max if language else None,
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


def state_allclose(record: CellRecord, tensor: str, modules: Sequence[ModuleRecord]) -> float | None:
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
