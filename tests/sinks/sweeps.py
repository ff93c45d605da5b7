"""Sweeps in a folder, as the store leaves them, with explicit figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sweeper.records.cell import CellRecord, ModuleRecord, StateDifference, StateFigures, TokenFigures
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


def large(folder: Path, count: int) -> Sweep:
    """Cells of 30 layers, all different, with figures by token of three long texts."""
    places = [(text, position) for text in range(3) for position in range(100)]
    texts, positions = (tuple(column) for column in zip(*places, strict=True))
    cells = []
    for i in range(count):
        max_abs, rel_l2 = (tuple(size * (i + 1 + place) for place in range(300)) for size in (0.1234567, 0.01234567))
        tokens = TokenFigures(text=texts, position=positions, max_abs=max_abs, rel_l2=rel_l2)
        rows = layered(0.001 * (i + 1) / 7, later=0.0137, layers=30)
        rows = [row.model_copy(update={"tokens": tokens}) if row.kind == "layer" else row for row in rows]
        axes = cell().axes() | {"inputs": f"inputs_{i}"}
        cells.append((measured(f"{i:04x}aaaabbbb", axes=axes, first_divergence="model.rotary_emb"), rows))
    return stored(folder, cells)


@dataclass(frozen=True)
class Enlarged(Sweep):
    """A sweep of more cells than lie on disk, whose files they share: to write thousands takes too long."""

    original: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    @property
    def read_modules(self) -> int:
        return len(self.asked)

    def modules(self, cell_id: str) -> list[ModuleRecord]:
        self.asked.append(cell_id)
        return super().modules(self.original[cell_id])

    def tokens(self, cell_id: str) -> dict[str, TokenFigures]:
        return super().tokens(self.original[cell_id])


def enlarged(sweep: Sweep, count: int) -> Enlarged:
    """A sweep of so many cells, over two axes of forty values and more."""
    records, original = [], {}
    for i in range(count):
        record = sweep.records[i % len(sweep.records)]
        axes = record.axes | {"inputs": f"inputs_{i // 40}", "numerics": f"numerics_{i % 40}"}
        records.append(record.model_copy(update={"cell_id": f"{i:04x}{record.cell_id}", "axes": axes}))
        original[records[-1].cell_id] = record.cell_id
    return Enlarged(sweep.folder, sweep.description, tuple(records), (), original, [])
