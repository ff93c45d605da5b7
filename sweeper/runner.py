"""Runs planned cells one after the other in this process and compares each with its reference.

What can be shared is: a checkpoint is prepared once, a model stays loaded for the cells that want the same weights, and
a reference that several cells name is run once.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from sweeper import attention, inputs, layout
from sweeper.capture import Capture, capture, tensors_of
from sweeper.checkpoints import LocalCheckpoint, prepare
from sweeper.compare import Comparer, Figures, Recorder
from sweeper.config import Cell, Checkpoint, Head
from sweeper.errors import AlignmentError, SweeperError, UnsupportedError
from sweeper.loading import LoadedModel, ModelPool, WeightsKey, autocast, synchronize
from sweeper.numerics import numerics
from sweeper.plan import PlannedCell
from sweeper.pooling import embeddings
from sweeper.results import CellRecord, Cost, ModuleRecord, Sample, StateFigures, Status
from sweeper.sample import Sampler, kept_outputs
from sweeper.state import StateEntry, compare_state, state_of

Listener = Recorder | Comparer


@dataclass(frozen=True)
class LaidOut:
    """The inputs of a cell: token ids of every text, and for every batch the model's calls."""

    token_ids: list[list[int]]
    batches: list[list[layout.Forward]]


@dataclass
class ReferenceRun:
    """A reference that has run: its outputs, its state and its inputs, for all candidates that name it."""

    cell_id: str
    outputs: Recorder
    state: dict[str, StateEntry]
    weights: WeightsKey
    token_ids: list[list[int]]
    sample: Sample


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


class Runner:
    """Runs cells. Holds what consecutive cells share.

    Args:
        environment: goes into every record.
        latency_repeats: bare forwards that are timed a cell; None is 5 on a GPU and 1 on a CPU.
        say: takes one line of progress (fetching, dequantising).
    """

    def __init__(self, environment: dict[str, Any], *, latency_repeats: int | None, say: Callable[[str], None]) -> None:
        transformers.utils.logging.disable_progress_bar()  # a bar a load would tear the sweep's own
        self._environment = environment
        self._latency_repeats = latency_repeats
        self._say = say
        self._pool = ModelPool()
        self._checkpoints: dict[tuple[Checkpoint, str], LocalCheckpoint] = {}
        self._reference: ReferenceRun | None = None
        self._states: dict[tuple[WeightsKey, WeightsKey], StateFigures] = {}

    def run(self, planned: PlannedCell) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        """Runs one cell to its record; whatever goes wrong is in the record, not raised (Ctrl-C is raised)."""
        record = _blank_record(planned, self._environment)
        if planned.unsupported:
            return _ended(record, Status.UNSUPPORTED, planned.unsupported), ()
        try:
            return self._measure(planned, record)
        except UnsupportedError as error:
            return _ended(record, Status.UNSUPPORTED, str(error)), ()
        except Exception as error:
            # the text, not the exception: its frames would keep the failed model alive
            failed = _ended(record, Status.FAILED, _reason(error), traceback.format_exc())
            traceback.clear_frames(error.__traceback__)
        self._forget(planned)
        return failed, ()

    def _forget(self, planned: PlannedCell) -> None:
        """Lets go of all that the failed cell may have filled the memory with."""
        self._pool.clear()
        self._reference = None
        self._states.clear()
        gc.collect()
        if planned.cell.device == "cuda":
            torch.cuda.empty_cache()

    def _measure(self, planned: PlannedCell, record: CellRecord) -> tuple[CellRecord, tuple[ModuleRecord, ...]]:
        cell = planned.cell
        reference = self._reference_run(planned)
        local = self._local(cell)
        loaded, was_loaded = self._pool.get(cell, local.folder)
        laid_out = lay_out(cell, local, loaded.model)
        if laid_out.token_ids != reference.token_ids:
            raise AlignmentError("the reference ran other token ids than the candidate: nothing can be aligned")
        with _conditions(cell) as without_effect:
            comparer = Comparer(reference.outputs, laid_out.token_ids, is_logits=cell.checkpoint.head is Head.CAUSAL_LM)
            ran = run_batches(cell, loaded.model, laid_out, comparer)
            cost, kernels = self._cost(cell, loaded, was_loaded, laid_out.batches[0], ran.first_output_NF)
        figures = comparer.finish()
        measured = record.model_copy(
            update={
                "checkpoint_revision": local.revision,
                "attention_kernels": kernels,
                "numerics_without_effect": without_effect,
                "unaligned": ran.unaligned,
                "first_divergence": figures.first_divergence,
                "output_kind": "logits" if cell.checkpoint.head is Head.CAUSAL_LM else "last_hidden_state",
                "output": figures.output,
                "language": figures.language,
                "texts": figures.texts,
                "state": self._state(reference, loaded),
                "cost": cost,
                "sample": ran.sample,
                "reference_sample": reference.sample,
            }
        )
        return _judged(measured, figures), figures.modules

    def _reference_run(self, planned: PlannedCell) -> ReferenceRun:
        if self._reference is not None and self._reference.cell_id == planned.reference_id:
            return self._reference
        self._reference = None  # frees its outputs before the next ones are made
        cell = planned.reference
        local = self._local(cell)
        loaded, _ = self._pool.get(cell, local.folder)
        laid_out = lay_out(cell, local, loaded.model)
        recorder = Recorder()
        with _conditions(cell):
            ran = run_batches(cell, loaded.model, laid_out, recorder)
        self._reference = ReferenceRun(
            planned.reference_id, recorder, state_of(loaded.model), loaded.key, laid_out.token_ids, ran.sample
        )
        return self._reference

    def _local(self, cell: Cell) -> LocalCheckpoint:
        key = (cell.checkpoint, cell.device)
        if key not in self._checkpoints:
            self._checkpoints[key] = prepare(cell.checkpoint, device=cell.device, say=self._say)
        return self._checkpoints[key]

    def _state(self, reference: ReferenceRun, candidate: LoadedModel) -> StateFigures:
        key = (reference.weights, candidate.key)
        if key not in self._states:
            self._states[key] = compare_state(reference.state, state_of(candidate.model))
        return self._states[key]

    def _cost(
        self, cell: Cell, loaded: LoadedModel, was_loaded: bool, batch: Sequence[layout.Forward], captured: Tensor
    ) -> tuple[Cost, tuple[str, ...]]:
        """Bare forwards of the first batch: the kernels that ran, whether the bits repeat, time and memory."""
        with attention.record_kernels(cell.device) as kernels:
            again = run_forwards(cell, loaded.model, batch)
        peak_memory_gib = None
        if cell.device == "cuda":
            peak_memory_gib = _peak_memory_gib(cell, loaded.model, batch)
        repeats = self._latency_repeats or (5 if cell.device == "cuda" else 1)
        times = [_timed_ms(cell, loaded.model, batch) for _ in range(repeats)]
        cost = Cost(
            load_time_s=loaded.load_time_s if was_loaded else None,
            latency_ms=statistics.median(times),
            peak_memory_gib=peak_memory_gib,
            repeatable=_same_bits(captured, again),
        )
        return cost, tuple(kernels)


@contextlib.contextmanager
def _conditions(cell: Cell) -> Iterator[dict[str, str]]:
    """Everything global that a cell asks for, around its forwards; yields the flags that mean nothing here."""
    with (
        numerics(cell.numerics, cell.device) as without_effect,
        attention.kernel(cell.attention),
        attention.refusals_as_unsupported(cell.attention),
        autocast(cell),
        torch.inference_mode(),
    ):
        yield without_effect


def lay_out(cell: Cell, local: LocalCheckpoint, model: nn.Module) -> LaidOut:
    """Token ids of the cell's texts, and the model's calls for each batch of them."""
    config: Any = model.config
    token_ids = inputs.read_token_ids(
        cell.inputs, local.folder, vocab_size=config.vocab_size, has_tokenizer=local.has_tokenizer
    )
    batches = [
        layout.lay_out(
            token_ids,
            texts,
            layout=cell.layout,
            positions=cell.positions,
            pad_id=layout.pad_id(config),
            device=cell.device,
        )
        for texts in inputs.batches(token_ids, cell.inputs.batch_size)
    ]
    return LaidOut(token_ids, batches)


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
    options = {"use_cache": cell.use_cache} if cell.checkpoint.causal else {}
    outputs = []
    for forward in batch:
        if running is not None:
            running.begin(forward)
        output = tensors_of(model(**forward.inputs, **options))[0]
        output_NF = layout.to_tokens(output, forward)
        assert output_NF is not None, f"the model's output of shape {tuple(output.shape)} has no token dimension"
        outputs.append(output_NF)
    return torch.cat(outputs)


def _timed_ms(cell: Cell, model: nn.Module, batch: Sequence[layout.Forward]) -> float:
    synchronize(cell.device)
    start = time.perf_counter()
    run_forwards(cell, model, batch)
    synchronize(cell.device)
    return (time.perf_counter() - start) * 1e3


def _peak_memory_gib(cell: Cell, model: nn.Module, batch: Sequence[layout.Forward]) -> float:
    """The weights, and what one bare forward needs beyond what was allocated before it."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run_forwards(cell, model, batch)
    beyond = torch.cuda.max_memory_allocated() - before
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    return (weights + beyond) / 2**30


def _same_bits(first: Tensor, second: Tensor) -> bool:
    same = first.eq(second) | (first.isnan() & second.isnan())
    return bool(same.all())


def _blank_record(planned: PlannedCell, environment: dict[str, Any]) -> CellRecord:
    return CellRecord(
        cell_id=planned.cell_id,
        status=Status.OK,
        attempt=uuid.uuid4().hex[:8],
        started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        axes=planned.cell.axes(),
        choices=planned.cell.model_dump(mode="json"),
        reference_id=planned.reference_id,
        reference_axes=planned.reference.axes(),
        environment=environment,
    )


def _ended(record: CellRecord, status: Status, reason: str, trace: str | None = None) -> CellRecord:
    return record.model_copy(update={"status": status, "reason": reason, "traceback": trace})


def _judged(record: CellRecord, figures: Figures) -> CellRecord:
    output = figures.output
    if output.numel and output.candidate_nan == output.numel:
        return _ended(record, Status.FAILED, "every element of the output is NaN")
    return record


def _reason(error: Exception) -> str:
    """One line: what a table can show."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else "no message"
    return text if isinstance(error, SweeperError) else f"{type(error).__name__}: {text}"
