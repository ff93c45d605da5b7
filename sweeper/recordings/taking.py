"""Records what a cell gives: outputs, modules, and what says later how far rounding alone may have moved them.

The evidence beside the outputs is made while the cell's model is at hand, so that two environments that never meet can
be judged by their recordings: the floor of every module under nudges, and the same run in float64 with its noise.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.comparator.forwards import side_of
from sweeper.comparator.observation import Observation, observe
from sweeper.comparator.side import POOLING, Side
from sweeper.config import Cell, Head
from sweeper.devices import out_of_memory
from sweeper.inputs.batching import forwards_of
from sweeper.recordings.log_probabilities import log_probabilities
from sweeper.recordings.wanted import Wanted
from sweeper.records.recording import (
    EMBEDDINGS,
    FLOAT64,
    HIDDEN,
    LOG_PROBABILITIES,
    LOGITS,
    MODULE,
    OUTPUT,
    Recording,
)
from sweeper.verdict.float64_replay import Precision, replayed
from sweeper.verdict.noise_floor import measure_floor, output_floor

MIB = 2**20
_FLOOR_SEEDS = 2

Tensors = dict[str, Tensor]


def about_cell(cell: Cell, revision: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """Who gave it, under the keys of docs/recordings.md."""
    return {
        "engine": f"transformers {environment.get('transformers')}",
        "checkpoint": cell.checkpoint.name,
        "revision": revision,
        "dtype": str(cell.dtype),
        "axes": cell.axes(),
        "environment": dict(environment),
    }


@dataclass
class _Kept:
    """What is kept of the batches, by name, and what was left out and why."""

    pieces: dict[str, list[Tensor]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    groups: tuple[str, ...] = ()


def record_cell(
    cell: Cell, model: nn.Module, token_ids: list[list[int]], wanted: Wanted, about: Mapping[str, Any]
) -> Recording:
    """Runs a cell's texts and keeps what they give, as many whole batches as fit.

    Args:
        about: what else is known of who runs; goes into the recording.
    """
    grouped = forwards_of(cell, token_ids)
    kept, texts, found = _Kept(), list[int](), dict[str, Any]()
    for number, group in enumerate(grouped):
        side = side_of(cell, model, token_ids, [group])
        given, observed = _run(cell, side, [token_ids[text] for text in group], wanted, kept)
        if not number:
            found = _of_first(side, observed, wanted, kept)
            group = _choose(given, group, token_ids, wanted, kept)
        elif _bytes(kept.pieces.values()) + _bytes([_of_groups(given, kept.groups).values()]) > wanted.most_mib * MIB:
            kept.left_out["texts"] = f"{len(token_ids) - len(texts)} of {len(token_ids)}: {_no_room(wanted)}"
            break
        texts += group
        for name, tensor in _of_groups(given, kept.groups).items():
            kept.pieces.setdefault(name, []).append(_leading(name, tensor, group, token_ids).cpu())
    ids = [token_ids[text] for text in texts]
    tensors = dict(_joined(kept, ids))
    modules = [name for name in observed.modules if name != POOLING]
    about = {**about, **found, "texts": texts, "modules": modules, "left_out": kept.left_out}
    return Recording(token_ids=ids, tensors=tensors, about=about)


def _run(
    cell: Cell, side: Side, token_ids: list[list[int]], wanted: Wanted, kept: _Kept
) -> tuple[dict[str, Tensors], Observation]:
    """What one batch gives, group by group, what is kept first first; and the run."""
    observed = observe(side)
    outputs, modules = _tensors(cell, observed, token_ids, wanted)
    given = {OUTPUT: outputs, FLOAT64: {}, MODULE: modules, f"{FLOAT64}{MODULE}": {}}
    if wanted.evidence and FLOAT64 not in kept.left_out:
        try:
            with replayed(side) as (exact, _):
                exact_outputs, exact_modules = _tensors(cell, observe(exact), token_ids, wanted)
        except Exception as error:  # whatever a foreign model raises in float64: the outputs are worth keeping
            kept.left_out[FLOAT64] = "memory ran out" if out_of_memory(error) else _line(error)
        else:
            given[FLOAT64] = {f"{FLOAT64}{name}": tensor for name, tensor in exact_outputs.items()}
            given[f"{FLOAT64}{MODULE}"] = {f"{FLOAT64}{name}": tensor for name, tensor in exact_modules.items()}
    return given, observed


def _tensors(cell: Cell, observed: Observation, token_ids: list[list[int]], wanted: Wanted) -> tuple[Tensors, Tensors]:
    """Outputs and modules' outputs of one run under the names that they are recorded by."""
    N = sum(map(len, token_ids))
    name, output_NF = next((name, tensor) for name, tensor in observed.outputs.items() if name != POOLING)
    outputs = {_output_name(name, output_NF, N): output_NF}
    if LOGITS in outputs and cell.checkpoint.head is Head.CAUSAL_LM:
        outputs[LOG_PROBABILITIES] = log_probabilities(output_NF, token_ids)
    if POOLING in observed.outputs:
        outputs[EMBEDDINGS] = observed.outputs[POOLING]
    modules = {
        f"{MODULE}{name}": rows_NF
        for name, module in observed.modules.items()
        if name != POOLING and wanted.module(name) and (rows_NF := _rows(module.outputs, N)) is not None
    }
    return outputs, modules


def _output_name(name: str, output_NF: Tensor, N: int) -> str:
    if len(output_NF) != N:
        return OUTPUT  # a classifier's: a row a text
    return {"logits": LOGITS, "last_hidden_state": HIDDEN}.get(name, OUTPUT)


def _rows(outputs: Sequence[Tensor], N: int) -> Tensor | None:
    """A row a token, of those modules that give one."""
    if sum(map(len, outputs)) != N or len({output.shape[1] for output in outputs}) != 1:
        return None
    return torch.cat(list(outputs)) if len(outputs) > 1 else outputs[0]


def _of_first(side: Side, observed: Observation, wanted: Wanted, kept: _Kept) -> dict[str, Any]:
    """The noise of the first batch: of each module and of the outputs under nudges, and of the run in float64."""
    if not wanted.evidence:
        return {}
    floor = measure_floor(side, observed, seeds=_FLOOR_SEEDS)
    found: dict[str, Any] = {
        "floor": floor.level,
        "floors": {name: floor.module(name) for name in floor.modules if wanted.module(name)},
        "state": _computed_state(side.model),
    }
    if FLOAT64 not in kept.left_out:
        with replayed(side) as (exact, precision):
            noise = output_floor(exact, observe(exact).outputs)
        found["float64"] = _precision(precision, noise)
    return found


def _precision(precision: Precision, noise: float) -> dict[str, Any]:
    return {"precision": str(precision), "eps": precision.eps, "noise": noise}


def _computed_state(model: nn.Module) -> dict[str, list[float]]:
    """The first numbers of each buffer that no file holds: another library may compute them otherwise."""
    found = {}
    for prefix, module in model.named_modules():
        for name in module._non_persistent_buffers_set:
            buffer = getattr(module, name, None)
            if isinstance(buffer, Tensor) and buffer.is_floating_point():
                found[f"{prefix}.{name}" if prefix else name] = buffer.flatten()[:256].double().tolist()
    return found


def _choose(
    given: Mapping[str, Tensors], group: tuple[int, ...], token_ids: list[list[int]], wanted: Wanted, kept: _Kept
) -> tuple[int, ...]:
    """Settles what of the first batch is kept: the groups that fit, in order; all texts where the outputs do."""
    left = wanted.most_mib * MIB
    for name, tensors in given.items():
        size = _bytes([tensors.values()])
        if name == OUTPUT or size <= left:
            kept.groups += (name,)
            left -= size
        else:
            kept.left_out[name] = _no_room(wanted)
    if left >= 0:
        return group
    a_token = _bytes([given[OUTPUT].values()]) / sum(len(token_ids[text]) for text in group)
    ends = itertools.accumulate(len(token_ids[text]) for text in group)
    fitting = max(1, sum(end * a_token <= wanted.most_mib * MIB for end in ends))
    kept.left_out["texts"] = f"{len(token_ids) - fitting} of {len(token_ids)}: {_no_room(wanted)}"
    return group[:fitting]


def _no_room(wanted: Wanted) -> str:
    return f"more than {wanted.most_mib:g} MiB"


def _of_groups(given: Mapping[str, Tensors], groups: Sequence[str]) -> Tensors:
    return {name: tensor for group in groups for name, tensor in given[group].items()}


def _leading(name: str, tensor: Tensor, group: Sequence[int], token_ids: list[list[int]]) -> Tensor:
    """The rows of these texts, which are a batch's first ones."""
    texts = name.removeprefix(FLOAT64) in (EMBEDDINGS, OUTPUT)
    return tensor[: len(group) if texts else sum(len(token_ids[text]) for text in group)]


def _joined(kept: _Kept, token_ids: list[list[int]]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor over all batches; one that a batch lacks, or gives otherwise, is left out."""
    N = sum(map(len, token_ids))
    for name, pieces in kept.pieces.items():
        plain = name.removeprefix(FLOAT64)
        rows = sum(map(len, pieces))
        if len({piece.shape[1:] for piece in pieces}) > 1 or (plain not in (EMBEDDINGS, OUTPUT) and rows != N):
            kept.left_out[name] = "not in every batch, or of another shape"
            continue
        yield name, torch.cat(pieces)


def _bytes(many: Any) -> int:
    return sum(tensor.nbytes for tensors in many for tensor in tensors)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
