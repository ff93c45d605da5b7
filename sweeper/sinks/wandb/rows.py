"""What W&B gets of a record: config, summary, rows of curves and tables. No path of this machine, no wandb."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from sweeper.records.cell import CellRecord, ModuleRecord, PairMeasures
from sweeper.reports.cell import furthest

LAYER_MEASURES = ("max_abs", "mean_abs", "rel_l2", "sqnr_db", "cosine", "equal_fraction")
TEXT_FIGURES = ("embedding_cosine", "output_cosine", "output_max_abs", "output_equal_fraction")
SMALL_IS_BAD = ("sqnr_db", "cosine", "equal_fraction", "embedding_cosine", "output_cosine", "output_equal_fraction")
MODULE_COLUMNS = ("name", "module_type", "layer", "kind", "candidate_dtype", "worst_text", "worst_position")
MODULE_MEASURES = (*LAYER_MEASURES, "max_ulp")
MOST_TEXTS = 1000  # that have a row each: the curve of a W&B chart has no more points than that
MOST_MODULES = 100  # in the table of a cell, those that are furthest off: wandb takes milliseconds a row

# The sections of W&B's own workspace go by what stands before the slash, in the order of the alphabet.
_SECTIONS = (("layer_attention", ("attn", "attention")), ("layer_mlp", ("mlp", "ffn", "moe", "expert", "feed_forward")))
_OTHERS = "layer_other"


def cell_config(record: CellRecord) -> dict[str, Any]:
    """Every axis by its name, those of the reference as `reference.<axis>`, and where the cell ran.

    Nested dicts, which W&B shows and filters as `reference.dtype`; it advises against dots inside a key.
    """
    config = {
        **record.axes,
        "cell_id": record.cell_id,
        "attempt": record.attempt,
        "reference_id": record.reference_id,
        "reference": record.reference_axes,
        "environment": record.environment,
        "checkpoint_revision": record.checkpoint_revision,
        "attention_kernels": list(record.attention_kernels),
        "schema_version": record.schema_version,
    }
    return without_paths(config)


def cell_summary(record: CellRecord, modules: Sequence[ModuleRecord] = ()) -> dict[str, Any]:
    """The headline figures, nested: W&B shows `output.max_abs`. What is not finite or not measured is absent."""
    verdict = record.verdict
    cause = verdict.cause if verdict else None
    summary: dict[str, Any] = {
        "status": record.status.value,
        "verdict": verdict.kind if verdict else None,
        "reason": record.reason or (verdict.reason if verdict else None),
        "cause": cause.what if cause else None,
        "put_back": cause.put_back if cause else None,
        "first_divergence": record.first_divergence,
        "neighbours_changed": record.neighbours_changed,
        **_worst_layer(modules),
    }
    for name in ("output", "language", "cost"):
        figures = getattr(record, name)
        summary[name] = present(figures.model_dump()) if figures else None
    if record.state:
        summary["state"] = record.state.model_dump(exclude={"differing"}) | {"differing": len(record.state.differing)}
    cosines = [text.embedding_cosine for text in record.texts]
    if cosines and all(map(math.isfinite, cosines)):  # a NaN among them must not hide behind the least of the others
        summary["embedding_cosine"] = {"min": min(cosines), "mean": math.fsum(cosines) / len(cosines)}
    return without_paths(present(summary))


def _worst_layer(modules: Sequence[ModuleRecord]) -> dict[str, Any]:
    """The layer whose output is furthest off, relative to its size."""
    layers = [module for module in modules if module.kind == "layer" and math.isfinite(module.measures.rel_l2)]
    worst = max(layers, key=lambda module: module.measures.rel_l2, default=None)
    if worst is None or not worst.measures.rel_l2:
        return {}
    return {"worst_layer": worst.layer, "worst_layer_rel_l2": worst.measures.rel_l2}


def curve_rows(modules: Sequence[ModuleRecord]) -> list[dict[str, Any]]:
    """One row a layer: `layer/<measure>` of its output; `layer_attention/<part>` and so on, the rel_l2 of its parts.

    Slashes, because `define_metric` matches no glob against a key with a dot.

    A figure that is infinite or NaN (`sqnr_db` of an identical layer) is a gap in the curve.
    """
    rows: dict[int, dict[str, Any]] = {}
    for module in modules:
        if module.layer is None:
            continue
        row = rows.setdefault(module.layer, {"layer": module.layer})
        if module.kind == "layer":
            row.update(present({f"layer/{name}": getattr(module.measures, name) for name in LAYER_MEASURES}))
        else:
            row.update(present({_part_key(module.kind): module.measures.rel_l2}))
    return [rows[layer] for layer in sorted(rows)]


def _part_key(kind: str) -> str:
    """`self_attn.q_proj` -> `layer_attention/q_proj`; the whole block is `layer_attention/output`."""
    block, _, part = kind.partition(".")
    section = next((name for name, words in _SECTIONS if any(word in block for word in words)), None)
    return (
        f"{_OTHERS}/{kind.replace('.', '/')}" if section is None else f"{section}/{part.replace('.', '/') or 'output'}"
    )


def text_rows(record: CellRecord) -> list[dict[str, Any]]:
    """One row a text: `text/<figure>`, against `text`. Of more than `MOST_TEXTS` those that are furthest off."""
    return [
        {"text": text.text, **present({f"text/{name}": getattr(text, name) for name in TEXT_FIGURES})}
        for text in sorted(furthest(record.texts, MOST_TEXTS), key=lambda text: text.text)
    ]


def summary_of(metric: str) -> str:
    """What W&B keeps of a curve: its worst and its mean."""
    return "min,mean" if metric.rpartition("/")[2] in SMALL_IS_BAD else "max,mean"


def module_table(modules: Sequence[ModuleRecord]) -> list[dict[str, Any]]:
    """The modules that are furthest off, in the order in which they run."""
    furthest_off = sorted(modules, key=lambda module: _distance(module.measures), reverse=True)[:MOST_MODULES]
    return [
        {name: getattr(module, name) for name in MODULE_COLUMNS}
        | {name: getattr(module.measures, name) for name in MODULE_MEASURES}
        for module in sorted(furthest_off, key=lambda module: module.order)
    ]


def _distance(measures: PairMeasures) -> float:
    return measures.rel_l2 if math.isfinite(measures.rel_l2) else math.inf


def cell_row(record: CellRecord) -> dict[str, Any]:
    """Axes, status and headline figures, flat: `output.max_abs`."""
    row: dict[str, Any] = {"cell_id": record.cell_id, "reference_id": record.reference_id, **without_paths(record.axes)}
    for name, value in cell_summary(record).items():
        row |= {f"{name}.{key}": one for key, one in value.items()} if isinstance(value, dict) else {name: value}
    return row


def shown(value: Any) -> Any:
    """Replaces infinity and NaN by None: wandb would write them as bare words that are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def present(figures: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured and is finite."""
    return {name: value for name, value in figures.items() if shown(value) is not None}


# An absolute path in a text: of Unix or Windows, or below the user's folder.
_PART = r"[^\s/\\'\",;=+()\[\]{}]+"
_PATH = re.compile(rf"(?<![\w.:/\\-])(?:~|[A-Za-z]:)?[/\\](?:{_PART}[/\\])*({_PART})")


def without_paths(value: Any) -> Any:
    """The same, every absolute path in a text replaced by its last part: where a file lies is nobody's business."""
    if isinstance(value, str):
        return _PATH.sub(r"\1", value)
    if isinstance(value, Mapping):
        return {key: without_paths(item) for key, item in value.items()}
    return [without_paths(item) for item in value] if isinstance(value, (list, tuple)) else value
