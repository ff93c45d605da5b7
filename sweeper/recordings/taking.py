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
    """What is kept, by name, in pieces of a batch each; and what was left out, and why."""

    pieces: dict[str, list[Tensor]] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.pieces.setdefault(name, []).append(tensor.cpu())

    @property
    def bytes(self) -> int:
        return sum(piece.nbytes for pieces in self.pieces.values() for piece in pieces)


@dataclass(frozen=True)
class _Given:
    """What one batch gave, natively and in float64, what is kept first first."""

    outputs: Tensors
    modules: Tensors
    exact_outputs: Tensors
    exact_modules: Tensors


def record_cell(
    cell: Cell, model: nn.Module, token_ids: list[list[int]], wanted: Wanted, about: Mapping[str, Any]
) -> Recording:
    """Runs a cell's texts and keeps what they give: outputs of as many as fit, modules of the first ones.

    Args:
        about: what else is known of who runs; goes into the recording.
    """
    kept, texts, found, modules = _Kept(), list[int](), dict[str, Any](), list[str]()
    most = int(wanted.most_mib * MIB)
    for number, group in enumerate(forwards_of(cell, token_ids)):
        side = side_of(cell, model, token_ids, [group])
        ids = [token_ids[text] for text in group]
        given, observed, noise = _run(cell, side, ids, wanted, kept, first=not number)
        if not number:
            modules = [name for name in observed.modules if name != POOLING]
            found = _of_first(side, observed, wanted) | noise
            group = group[: _fitting(given.outputs, ids, most)]
            _keep_first(given, ids, len(group), wanted, kept)
        else:
            shared = {name: tensor for name, tensor in _all(given).items() if name in kept.pieces and _by_batch(name)}
            if kept.bytes + sum(tensor.nbytes for tensor in shared.values()) > most:
                break
            kept.add(shared)
        texts += group
        if len(group) < len(ids):
            break
    if len(texts) < len(token_ids):
        kept.left_out["texts"] = f"{len(token_ids) - len(texts)} of {len(token_ids)}: {_no_room(wanted)}"
    tensors = dict(_joined(kept, [token_ids[text] for text in texts]))
    about = {**about, **found, "texts": texts, "modules": modules, "left_out": kept.left_out}
    return Recording(token_ids=[token_ids[text] for text in texts], tensors=tensors, about=about)


def _run(
    cell: Cell, side: Side, token_ids: list[list[int]], wanted: Wanted, kept: _Kept, *, first: bool
) -> tuple[_Given, Observation, dict[str, Any]]:
    """What one batch gives; the run; and of the first one the noise of its run in float64."""
    observed = observe(side)
    noise: dict[str, Any] = {}
    outputs, modules = _tensors(cell, observed, token_ids, wanted)
    exact_outputs: Tensors = {}
    exact_modules: Tensors = {}
    if wanted.evidence and FLOAT64 not in kept.left_out:
        try:
            with replayed(side) as (exact, precision):
                exactly = observe(exact)
                if first:
                    noise["float64"] = _precision(precision, output_floor(exact, exactly.outputs))
                exact_outputs, exact_modules = _tensors(cell, exactly, token_ids, wanted)
        except Exception as error:  # whatever a foreign model raises in float64: the outputs are worth keeping
            kept.left_out[FLOAT64] = "memory ran out" if out_of_memory(error) else _line(error)
    return _Given(outputs, modules, _in_float64(exact_outputs), _in_float64(exact_modules)), observed, noise


def _in_float64(tensors: Tensors) -> Tensors:
    return {f"{FLOAT64}{name}": tensor for name, tensor in tensors.items()}


def _all(given: _Given) -> Tensors:
    return given.outputs | given.exact_outputs | given.modules | given.exact_modules


def _by_batch(name: str) -> bool:
    """Whether all batches have it, and not the first alone."""
    return not name.removeprefix(FLOAT64).startswith(MODULE)


def _fitting(outputs: Tensors, token_ids: list[list[int]], most: int) -> int:
    """How many of the first texts fit; at least one."""
    a_token = sum(tensor.nbytes for tensor in outputs.values()) / sum(map(len, token_ids))
    return max(1, sum(end * a_token <= most for end in itertools.accumulate(map(len, token_ids))))


def _keep_first(given: _Given, token_ids: list[list[int]], texts: int, wanted: Wanted, kept: _Kept) -> None:
    """Keeps of the first batch what fits: outputs, those in float64 that are not large, modules of as many texts as
    have room, and then logits in float64."""
    most = int(wanted.most_mib * MIB)
    kept.add({name: _leading(name, tensor, token_ids, texts) for name, tensor in given.outputs.items()})
    large = f"{FLOAT64}{LOGITS}"
    exact = {name: tensor for name, tensor in given.exact_outputs.items() if name != large}
    _keep_fitting(exact, token_ids, texts, most, kept)
    modules = given.modules | given.exact_modules
    a_token = sum(tensor.nbytes for tensor in modules.values()) / sum(map(len, token_ids))
    room = (end * a_token <= most - kept.bytes for end in itertools.accumulate(map(len, token_ids[:texts])))
    number = max(1, sum(room))
    if modules and number < texts:
        kept.left_out["texts of modules"] = f"{texts - number} of {texts}: {_no_room(wanted)}"
    _keep_fitting(modules, token_ids, number, most, kept)
    _keep_fitting(
        {name: given.exact_outputs[name] for name in given.exact_outputs if name == large}, token_ids, texts, most, kept
    )
    left = [name for name in _all(given) if name not in kept.pieces]
    for title, names in (
        ("modules", [name for name in left if name.startswith(MODULE)]),
        ("modules in float64", [name for name in left if name.startswith(f"{FLOAT64}{MODULE}")]),
    ):
        if names:
            kept.left_out[title] = f"{len(names)}, from {names[0]} on: {_no_room(wanted)}"
    for name in (name for name in left if _by_batch(name)):
        kept.left_out[name] = _no_room(wanted)


def _keep_fitting(tensors: Tensors, token_ids: list[list[int]], texts: int, most: int, kept: _Kept) -> None:
    """Keeps the tensors in their order as far as there is room."""
    left = most - kept.bytes
    for name, tensor in tensors.items():
        leading = _leading(name, tensor, token_ids, texts)
        left -= leading.nbytes
        if left < 0:
            return
        kept.add({name: leading})


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


def _of_first(side: Side, observed: Observation, wanted: Wanted) -> dict[str, Any]:
    """How far rounding may move each module and the outputs of the first batch, under nudges; and computed state."""
    if not wanted.evidence:
        return {}
    floor = measure_floor(side, observed, seeds=_FLOOR_SEEDS)
    return {
        "floor": floor.level,
        "floors": {name: floor.module(name) for name in floor.modules if wanted.module(name)},
        "state": _computed_state(side.model),
    }


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


def _no_room(wanted: Wanted) -> str:
    return f"more than {wanted.most_mib:g} MiB"


def _leading(name: str, tensor: Tensor, token_ids: list[list[int]], texts: int) -> Tensor:
    """The rows of the first texts, copied where there are more."""
    a_row_a_text = name.removeprefix(FLOAT64) in (EMBEDDINGS, OUTPUT)
    rows = texts if a_row_a_text else sum(map(len, token_ids[:texts]))
    return tensor if rows >= len(tensor) else tensor[:rows].clone()


def _joined(kept: _Kept, token_ids: list[list[int]]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor over all batches; an output that a batch lacks, or gives otherwise, is left out."""
    N, batches = sum(map(len, token_ids)), max(map(len, kept.pieces.values()))
    for name, pieces in kept.pieces.items():
        plain = name.removeprefix(FLOAT64)
        a_row_a_text = plain in (EMBEDDINGS, OUTPUT) and len(pieces) == batches
        whole = a_row_a_text or not _by_batch(name) or sum(map(len, pieces)) == N
        if len({piece.shape[1:] for piece in pieces}) > 1 or not whole:
            kept.left_out[name] = "not in every batch, or of another shape"
            continue
        yield name, torch.cat(pieces)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
