"""Records of a small sweep: explicit figures, so that a test can name the ones it expects."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sweeper.config import Cell, parse
from sweeper.records.cell import CellRecord, Cost, ModuleRecord, PairMeasures, StateFigures, Status, TextFigures

REFERENCE_AXES: dict[str, str | bool] = {"dtype": "float32", "attention": "eager", "use_cache": False}


@dataclass(frozen=True)
class Planned:
    cell: Cell
    cell_id: str


@dataclass(frozen=True)
class SmallPlan:
    """What a sink needs of `sweeper.planning.plan.Plan`."""

    folder: Path
    cells: tuple[Planned, ...]
    grid: str = "bf16_vs_fp32"
    sweep: str = "sweep1"
    dropped: tuple[str, ...] = ("positions has no meaning for mine: BartModel takes no position_ids",)


def cell(**choices: Any) -> Cell:
    defaults = {
        "checkpoint": {
            "source": "folder",
            "name": "tiny",
            "head": "causal_lm",
            "pooling": "mean",
            "path": "tiny",
        },
        "load_strategy": "dtype_at_load",
        "dtype": "bfloat16",
        "attention": "eager",
        "layout": "padded_left",
        "positions": "implicit",
        "use_cache": False,
        "numerics": {"name": "default"},
        "inputs": {"name": "short", "texts": ["Gravity is"]},
        "device": "cpu",
    }
    return parse(Cell, defaults | choices)


def measures(max_abs: float) -> PairMeasures:
    """The measures where one of eight elements of ones differs by `max_abs`; identical when it is 0."""
    return PairMeasures(
        numel=8,
        finite=8,
        equal_fraction=7 / 8 if max_abs else 1.0,
        max_abs=max_abs,
        mean_abs=max_abs / 8,
        rms=max_abs / math.sqrt(8),
        rel_l2=max_abs / math.sqrt(8),
        sqnr_db=10 * math.log10(8 / max_abs**2) if max_abs else math.inf,
        cosine=(8 + max_abs) / math.sqrt(8 * (7 + (1 + max_abs) ** 2)),
        min_token_cosine=math.nan,
        max_ulp=max_abs * 128,
        allclose=not max_abs,
        rtol=1.6e-2,
        atol=1e-5,
        reference_nan=0,
        candidate_nan=0,
        reference_inf=0,
        candidate_inf=0,
        nonfinite_mismatch=0,
        worst_token=1,
        worst_feature=0,
        worst_reference=1.0,
        worst_candidate=1.0 + max_abs,
    )


def module(order: int, name: str, layer: int | None, kind: str, max_abs: float) -> ModuleRecord:
    return ModuleRecord(
        order=order,
        name=name,
        module_type="Linear",
        layer=layer,
        kind=kind,
        reference_dtype="float32",
        candidate_dtype="bfloat16",
        worst_text=0 if layer is not None else None,
        worst_position=1,
        measures=measures(max_abs),
    )


def modules(layers: int = 3, parts: tuple[str, ...] = ("self_attn.q_proj", "mlp")) -> list[ModuleRecord]:
    """An embedding, then `layers` layers; the first layer is identical, each later one drifts further."""
    rows = [module(0, "model.embed_tokens", None, "model.embed_tokens", 0.0)]
    for layer in range(layers):
        for kind in (*parts, "layer"):
            name = f"model.layers.{layer}" + ("" if kind == "layer" else f".{kind}")
            rows.append(module(len(rows), name, layer, kind, 0.25 * layer))
    return rows


def record(cell_id: str = "c1", attempt: str = "a1", status: Status = Status.OK, **fields: Any) -> CellRecord:
    figures: dict[str, Any] = {}
    if status is Status.OK:
        figures = {
            "output_kind": "logits",
            "output": measures(0.5),
            "texts": tuple(text(number, cosine) for number, cosine in enumerate((1.0, 0.75))),
            "state": StateFigures(
                parameters=9, parameters_equal=9, buffers=1, buffers_equal=0, same_dtype=9, differing=()
            ),
            "cost": Cost(load_time_s=None, latency_ms=12.5, peak_memory_gib=None, repeatable=True),
        }
    return CellRecord(
        cell_id=cell_id,
        status=status,
        attempt=attempt,
        started_at="2026-01-01T00:00:00Z",
        axes=cell().axes(),
        choices={},
        reference_axes=REFERENCE_AXES,
        environment={"torch": "2.13.0", "device": "cpu"},
        **({"reference_id": "r1"} | figures | fields),
    )


def text(number: int, embedding_cosine: float) -> TextFigures:
    return TextFigures(
        text=number,
        tokens=3,
        output_max_abs=0.5,
        output_equal_fraction=0.875,
        output_cosine=0.99,
        embedding_cosine=embedding_cosine,
        embedding_max_abs=0.1,
        embedding_mean_abs=0.01,
    )
