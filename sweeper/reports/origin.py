"""Where a difference starts: the modules up to and inside the first layer that differs, and a sentence about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from sweeper.records.cell import CellRecord, ModuleRecord, StateFigures
from sweeper.records.sweep import Sweep, short_label
from sweeper.reports.cells_table import joined_names

MOST_ORIGINS = 12  # cells; beyond that the lines say less than the table


class EqualLayers(NamedTuple):
    """A run of layers whose every module output is equal, from layer `first` to `last`."""

    first: int
    last: int
    modules: int


def module_differs(module: ModuleRecord) -> bool:
    return module.measures.equal_fraction < 1


def layer_outputs(modules: Sequence[ModuleRecord]) -> list[ModuleRecord]:
    """The rows of whole layers, in order of execution."""
    return [module for module in modules if module.kind == "layer"]


def steps(modules: Sequence[ModuleRecord]) -> list[ModuleRecord | EqualLayers]:
    """Modules in order of execution to the end of the first layer that differs; equal layers before it are one step.

    Where no layer differs, all modules outside the layers. Nothing differs: an empty list.
    """
    if not any(map(module_differs, modules)):
        return []
    first = _first_in_a_layer(modules)
    layer = None if first is None else first.layer
    inside = [module.order for module in modules if layer is not None and module.layer == layer]
    found: list[ModuleRecord | EqualLayers] = []
    for module in modules:
        if inside and module.order > inside[-1]:
            break
        if module.layer is None or module.layer == layer:
            found.append(module)
        elif found and isinstance(found[-1], EqualLayers):
            found[-1] = EqualLayers(found[-1].first, module.layer, found[-1].modules + 1)
        else:
            found.append(EqualLayers(module.layer, module.layer, 1))
    return found


def origin(record: CellRecord, modules: Sequence[ModuleRecord]) -> str:
    """One line: `model.rotary_emb; in layer 0: q_proj, k_proj, v_proj equal, o_proj not; buffer ... float32 -> ...`."""
    if record.first_divergence is None:
        return "; ".join(["every module output is equal", *_state_sentences(record.state)])
    first = _first_in_a_layer(modules)
    parts = [] if first is not None and first.name == record.first_divergence else [record.first_divergence]
    if first is not None:
        parts.append(_layer_sentence(first, modules))
    else:
        parts.append("all layers equal" if modules else "no module was compared")
    return "; ".join([*parts, *_state_sentences(record.state)])


def origins(sweep: Sweep) -> list[tuple[str, str]]:
    """Labels of cells -> where they start, for cells that differ from a reference of the same dtype.

    Cells that start alike share a line. Empty for sweeps of more than `MOST_ORIGINS` cells.
    """
    if len(sweep.records) > MOST_ORIGINS:
        return []
    starts: dict[str, list[str]] = {}
    for record in sweep.records:
        if record.first_divergence is not None and record.axes["dtype"] == record.reference_axes["dtype"]:
            where = origin(record, sweep.modules(record.cell_id))
            starts.setdefault(where, []).append(short_label(record.axes, sweep.varying))
    return [(", ".join(labels), where) for where, labels in starts.items()]


def _first_in_a_layer(modules: Sequence[ModuleRecord]) -> ModuleRecord | None:
    return next((module for module in modules if module.layer is not None and module_differs(module)), None)


def _layer_sentence(first: ModuleRecord, modules: Sequence[ModuleRecord]) -> str:
    """The modules beside the first one that differs (`q_proj` beside `o_proj`), and that one."""
    parent, _, name = first.kind.rpartition(".")
    before = [module for module in modules if module.layer == first.layer and module.order < first.order]
    equal = [module.kind.rpartition(".")[2] for module in before if module.kind.rpartition(".")[0] == parent and parent]
    where = f"in layer {first.layer}: "
    if first.layer:
        where = f"layers before {first.layer} equal; " + where
    return where + (f"{', '.join(equal)} equal, {name} not" if equal else f"from {name} on")


def _state_sentences(state: StateFigures | None) -> list[str]:
    """`buffer rotary_emb.inv_freq float32 -> bfloat16`; more than three that changed alike by their number."""
    alike: dict[tuple[str, str], list[str]] = {}
    for entry in state.differing if state else ():
        word = "parameter" if entry.kind == "parameter" else "buffer"
        dtypes = entry.reference_dtype, entry.candidate_dtype
        change = "of other values" if dtypes[0] == dtypes[1] else " -> ".join(dtypes)
        alike.setdefault((word, change), []).append(entry.name)
    sentences = []
    for (word, change), names in alike.items():
        named = f"{word}{'s' * (len(names) > 1)} {joined_names(names)}"
        sentences.append(f"{f'{len(names)} {word}s' if len(names) > 3 else named} {change}")
    return sentences
