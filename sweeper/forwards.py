"""A cell's forwards: the texts laid out, the conditions around them, and the runs with hooks and without."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sweeper import attention, inputs, layout
from sweeper.capture import Capture, capture, tensors_of
from sweeper.checkpoints import LocalCheckpoint
from sweeper.compare import Comparer, Recorder
from sweeper.config import Cell
from sweeper.loading import autocast
from sweeper.numerics import numerics
from sweeper.pooling import embeddings
from sweeper.results import Sample
from sweeper.sample import Sampler, kept_outputs

Listener = Recorder | Comparer


@dataclass(frozen=True)
class LaidOut:
    """The inputs of a cell: token ids of every text, and for every batch the model's calls."""

    token_ids: list[list[int]]
    batches: list[list[layout.Forward]]


@dataclass(frozen=True)
class BatchesRun:
    """What running all batches left behind, besides what the listener took.

    Attributes:
        first_output_NF: the first batch's output over its real tokens.
        unaligned: what could not be aligned, and why.
        sample: inputs and a corner of the output.
    """

    first_output_NF: Tensor
    unaligned: dict[str, str]
    sample: Sample


@contextlib.contextmanager
def conditions(cell: Cell) -> Iterator[dict[str, str]]:
    """Everything global that a cell asks for, around its forwards; yields the flags that mean nothing here."""
    with (
        numerics(cell.numerics, cell.device) as without_effect,
        attention.kernel(cell.attention),
        attention.refusals_as_unsupported(cell.attention),
        autocast(cell),
    ):
        yield without_effect


def read_texts(cell: Cell, local: LocalCheckpoint, model: nn.Module) -> list[list[int]]:
    """Token ids of the cell's texts."""
    config: Any = model.config
    return inputs.read_token_ids(
        cell.inputs, local.folder, vocab_size=config.vocab_size, has_tokenizer=local.has_tokenizer
    )


def lay_out(cell: Cell, token_ids: list[list[int]], model: nn.Module) -> LaidOut:
    """The model's calls for each batch of the texts."""
    batches = [
        lay_out_texts(cell, token_ids, texts, model) for texts in inputs.batches(token_ids, cell.inputs.batch_size)
    ]
    return LaidOut(token_ids, batches)


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


def run_batches(cell: Cell, model: nn.Module, laid_out: LaidOut, listener: Listener) -> BatchesRun:
    """Runs every batch with hooks; the listener takes every module's output."""
    base: Any = model.base_model  # gives the last hidden state; the model itself where there is no head
    sampler: Sampler | None = None
    first_output_NF = torch.empty(0)
    with capture(model, listener.take) as running, kept_outputs(base) as hidden, kept_outputs(model) as outputs:
        for batch in laid_out.batches:
            listener.begin_batch()
            output_NF = run_forwards(cell, model, batch, running)
            listener.end_batch(output_NF, embeddings(hidden, batch, cell.checkpoint.pooling))
            if sampler is None:
                sampler, first_output_NF = Sampler(batch, outputs, output_NF), output_NF
            hidden.clear()
            outputs.clear()
    assert sampler is not None, "inputs hold at least one text"
    return BatchesRun(first_output_NF, running.unaligned, sampler.sample())


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
    return torch.cat(outputs)
