"""What a cell costs: bare forwards, without hooks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sweeper.comparator.forwards import run_forwards
from sweeper.comparator.side import Call
from sweeper.config import Cell, LoadStrategy
from sweeper.devices import synchronize
from sweeper.models.once import once_a_model
from sweeper.models.swapping import Source
from sweeper.records.cell import Cost
from sweeper.sweep.code_paths import is_compiled

MOST_REPEATS = 5
ENOUGH_MS = 20  # of timed forwards, where it is not said how many


def warm_up(cell: Cell, model: nn.Module, batch: Sequence[Call]) -> None:
    """Runs a forward where the first one under its `conditions` does more than the next: a backend compiles, and
    autocast casts the weights. All else is warm: the same batch ran with hooks."""
    if is_compiled(cell) or cell.load_strategy is LoadStrategy.AUTOCAST:
        run_forwards(model, batch)


def measure_cost(
    cell: Cell,
    model: nn.Module,
    batch: Sequence[Call],
    captured_NF: Tensor,
    *,
    repeats: int | None,
) -> Cost:
    """Times bare forwards of the first batch; the first also tells the memory, and whether the bits repeat.

    Call it warm: what a first forward does more than the next would be timed too.

    Args:
        captured_NF: the same batch's output with hooks.
        repeats: how many forwards are timed; None is five, or fewer that take `ENOUGH_MS` together.
    """
    if repeats == 0:
        return Cost()
    allocated = _start_of_peak() if cell.device == "cuda" else None
    time_ms, again_NF = _timed_ms(cell, model, batch)
    peak_memory_gib = None if allocated is None else _peak_memory_gib(model, allocated)
    repeatable = _same_bits(captured_NF, again_NF)
    del again_NF
    times = [time_ms]
    while len(times) < (repeats or MOST_REPEATS) and (repeats or sum(times) < ENOUGH_MS):
        times.append(_timed_ms(cell, model, batch)[0])
    return Cost(
        latency_ms=statistics.median(times),
        peak_memory_gib=peak_memory_gib,
        repeatable=repeatable,
    )


def _timed_ms(cell: Cell, model: nn.Module, batch: Sequence[Call]) -> tuple[float, Tensor]:
    """How long a forward took, and its output."""
    synchronize(cell.device)
    start = time.perf_counter()
    output_NF = run_forwards(model, batch)
    synchronize(cell.device)
    return (time.perf_counter() - start) * 1e3, output_NF


def _start_of_peak() -> int:
    """Bytes that are allocated now; the peak is counted from here on."""
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak_memory_gib(model: nn.Module, allocated: int) -> float:
    """The weights that stay, and what a bare forward needed beyond what was allocated before it."""
    beyond = torch.cuda.max_memory_allocated() - allocated
    return (_weights_that_stay(model) + beyond) / 2**30


@once_a_model
def _weights_that_stay(model: nn.Module) -> int:
    """Their bytes; streamed ones come and go."""
    tensors = [*model.parameters(), *model.buffers()]
    return sum(tensor.nbytes for tensor in tensors if Source.of(tensor) is None and not tensor.is_meta)


def _same_bits(first: Tensor, second: Tensor) -> bool:
    """Whether all elements are equal, NaN to NaN. Both can be gigabytes: one pass, unless something differs."""
    return torch.equal(first, second) or bool((first.eq(second) | (first.isnan() & second.isnan())).all())
