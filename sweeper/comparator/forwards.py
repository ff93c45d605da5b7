"""A cell's forwards: texts laid out, and batches run in its conditions with hooks and without."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sweeper.checkpoints import LocalCheckpoint
from sweeper.comparator.comparer import BatchOutputs
from sweeper.comparator.corners import Sampler, kept_outputs
from sweeper.comparator.hooks import Capture, ModuleOutput, capture, steady_in_call, tensors_of
from sweeper.config import Cell
from sweeper.inputs import layout
from sweeper.inputs import texts as inputs
from sweeper.inputs.pooling import embeddings
from sweeper.models.conditions import conditions
from sweeper.records.cell import Sample


@dataclass(frozen=True)
class BatchesRun:
    """What running all batches left behind, besides what was compared.

    Attributes:
        first_batch: the calls of the first batch.
        first_output_NF: its output over its real tokens.
        unaligned: what could not be aligned, and why.
        sample: inputs and a corner of the output.
    """

    first_batch: Sequence[layout.Forward]
    first_output_NF: Tensor
    unaligned: dict[str, str]
    sample: Sample


def read_texts(cell: Cell, local: LocalCheckpoint, model: nn.Module) -> list[list[int]]:
    """Token ids of the cell's texts."""
    config: Any = model.config
    return inputs.read_token_ids(
        cell.inputs, local.folder, vocab_size=config.vocab_size, has_tokenizer=local.has_tokenizer
    )


def lay_out_texts(
    cell: Cell, token_ids: list[list[int]], texts: Sequence[int], model: nn.Module
) -> list[layout.Forward]:
    """The model's calls for some of the texts, in one batch."""
    return layout.lay_out(
        token_ids,
        texts,
        layout=cell.layout,
        positions=cell.positions,
        pad_id=layout.pad_id(model.config),
        device=cell.device,
    )


def arguments(cell: Cell, forward: layout.Forward) -> dict[str, Any]:
    """What the model is called with. An encoder has no cache to speak of."""
    return {**forward.inputs, "use_cache": cell.use_cache} if cell.checkpoint.causal else dict(forward.inputs)


def steady_outputs(cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> frozenset[str]:
    """`steady_in_call` of the cell's own call, on the beginnings of two texts."""
    beginnings = [ids[:8] for ids in token_ids[:2]]
    forward = lay_out_texts(cell, beginnings, range(len(beginnings)), model)[0]
    with conditions(cell):
        return steady_in_call(model, forward, lambda: model(**arguments(cell, forward)))


class HookedModel:
    """A cell's model with hooks on every module. It is run batch by batch."""

    def __init__(
        self,
        cell: Cell,
        model: nn.Module,
        token_ids: list[list[int]],
        running: Capture,
        hidden: list[Tensor],
        outputs: list[Tensor],
    ) -> None:
        self._cell = cell
        self._model = model
        self._token_ids = token_ids
        self._running = running
        self._hidden = hidden
        self._outputs = outputs
        self._first: tuple[Sequence[layout.Forward], Tensor, Sampler] | None = None

    def run(self, texts: Sequence[int]) -> BatchOutputs:
        """Runs one batch; its tensors are on the device only from here on, and only until it is compared."""
        batch = lay_out_texts(self._cell, self._token_ids, texts, self._model)
        output_NF = run_forwards(self._cell, self._model, batch, self._running)
        embedding_SD = embeddings(self._hidden, batch, self._cell.checkpoint.pooling)
        if self._first is None:
            self._first = batch, output_NF, Sampler(batch, self._outputs, output_NF)
        self._hidden.clear()
        self._outputs.clear()
        return BatchOutputs(output_NF, embedding_SD)

    def result(self) -> BatchesRun:
        assert self._first is not None, "inputs hold at least one text"
        batch, output_NF, sampler = self._first
        return BatchesRun(batch, output_NF, self._running.unaligned, sampler.sample())


@contextlib.contextmanager
def hooked(
    cell: Cell, model: nn.Module, token_ids: list[list[int]], take: Callable[[ModuleOutput], object]
) -> Iterator[HookedModel]:
    """Hooks a cell's model; `take` gets every module's output the moment it exists."""
    base: Any = model.base_model  # gives the last hidden state; the model itself where there is no head
    with capture(model, take) as running, kept_outputs(base) as hidden, kept_outputs(model) as outputs:
        yield HookedModel(cell, model, token_ids, running, hidden, outputs)


def run_forwards(
    cell: Cell, model: nn.Module, batch: Sequence[layout.Forward], running: Capture | None = None
) -> Tensor:
    """The model's output (logits, or last hidden state) over the real tokens of one batch, [N, F]."""
    outputs = []
    for forward in batch:
        if running is not None:
            running.begin(forward)
        output = tensors_of(model(**arguments(cell, forward)))[0]
        output_NF = layout.to_tokens(output, forward)
        assert output_NF is not None, f"the model's output of shape {tuple(output.shape)} has no token dimension"
        outputs.append(output_NF)
    return torch.cat(outputs) if len(outputs) > 1 else outputs[0]
