"""Sweeps in a folder, as the store leaves them, with explicit figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sweeper.records.cell import CellRecord, ModuleRecord, StateDifference, StateFigures
from sweeper.records.store import Store
from sweeper.records.sweep import Sweep
from tests.sinks.records import cell, measures, module, record

INV_FREQ = StateDifference(
    name="model.rotary_emb.inv_freq",
    kind="non_persistent_buffer",
    reference_dtype="float32",
    candidate_dtype="bfloat16",
    values_equal=False,
    max_abs=0.0013,
)
ROUNDED_TABLE = StateFigures(
    parameters=9, parameters_equal=9, buffers=1, buffers_equal=0, same_dtype=9, differing=(INV_FREQ,)
)
SAME_STATE = StateFigures(parameters=9, parameters_equal=9, buffers=1, buffers_equal=1, same_dtype=10, differing=())

Cells = Sequence[tuple[CellRecord, Sequence[ModuleRecord]]]


def measured(cell_id: str = "c1", **fields: Any) -> CellRecord:
    """A record with some fields replaced; its reference has the same axes unless they are given."""
    axes = fields.get("axes", cell().axes())
    return record(cell_id).model_copy(update={"reference_axes": axes} | fields)


def stored(folder: Path, cells: Cells, not_run: int = 0, **description: Any) -> Sweep:
    """Writes a sweep of these cells, of which `not_run` more were planned."""
    planned = [{"cell_id": record.cell_id, "reference_id": record.reference_id} for record, _ in cells]
    planned += [{"cell_id": f"never{i}", "reference_id": f"never{i}"} for i in range(not_run)]
    config = {"overrides": ["+grid=load_strategy", "output_dir=/somewhere/else", "wandb.mode=disabled"]}
    store = Store(folder)
    store.open(
        {"schema_version": 1, "grid": "load_strategy", "sweep": "sweep1", "config": config, "cells": planned}
        | description
    )
    for one, modules in cells:
        store.write(one, modules)
    return Sweep.read(folder)


def layered(o_proj: float, later: float = 0.0, layers: int = 2) -> list[ModuleRecord]:
    """Rotary table and layer 0's o_proj differ by `o_proj`, and so does what follows in the layers, plus `later`."""
    figures: list[tuple[str, int | None, str, float]] = [
        ("model.embed_tokens", None, "model.embed_tokens", 0.0),
        ("model.rotary_emb", None, "model.rotary_emb", o_proj),
    ]
    for layer in range(layers):
        for kind in ("input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
            figures.append((f"model.layers.{layer}.{kind}", layer, kind, o_proj if layer else 0.0))
        figures.append((f"model.layers.{layer}.self_attn.o_proj", layer, "self_attn.o_proj", o_proj))
        figures.append((f"model.layers.{layer}", layer, "layer", o_proj + later * layer))
    figures.append(("lm_head", None, "lm_head", o_proj))
    return [module(order, *figure) for order, figure in enumerate(figures)]


def report_1(folder: Path, **axes: str) -> Sweep:
    """A reference, two cells whose rotary table was rounded alike, and one whose table was not."""

    def one(cell_id: str, strategy: str, difference: float) -> tuple[CellRecord, list[ModuleRecord]]:
        made = measured(
            cell_id,
            axes=cell(load_strategy=strategy).axes() | axes,
            reference_id="aaaa11112222",
            reference_axes=cell(load_strategy="dtype_at_load").axes() | axes,
            output=measures(difference),
            state=ROUNDED_TABLE if difference else SAME_STATE,
            first_divergence="model.rotary_emb" if difference else None,
        )
        return made, layered(difference)

    return stored(
        folder,
        [
            one("aaaa11112222", "dtype_at_load", 0.0),
            one("aaaa33334444", "cast_after_load", 0.25),
            one("bbbb55556666", "cast_before_move", 0.25),
            one("cccc77778888", "device_map", 0.0),
        ],
    )


def many(folder: Path, count: int) -> Sweep:
    """`count` cells that all differ, each by another amount, the last by most."""
    cells = []
    for i in range(count):
        axes = cell().axes() | {"inputs": f"inputs_{i}"}
        made = measured(f"{i:04x}aaaabbbb", axes=axes, first_divergence="model.rotary_emb")
        cells.append((made, layered(0.01 * (i + 1))))
    return stored(folder, cells)
