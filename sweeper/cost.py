"""What a cell costs: bare forwards, without hooks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sweeper.attention import record_kernels
from sweeper.config import Cell
from sweeper.forwards import run_forwards
from sweeper.layout import Forward
from sweeper.loading import synchronize
from sweeper.results import Cost


def measure_cost(
    cell: Cell,
    model: nn.Module,
    batch: Sequence[Forward],
    captured_NF: Tensor,
    *,
    load_time_s: float | None,
    repeats: int | None,
) -> tuple[Cost, tuple[str, ...]]:
    """Bare forwards of the first batch: time and memory, whether the bits repeat; and the attention kernels that ran.

    Args:
        captured_NF: the same batch's output with hooks.
        repeats: how many forwards are timed; None is 5 on a GPU and 1 on a CPU.
    """
    with record_kernels(cell.device) as kernels:
        again_NF = run_forwards(cell, model, batch)
    peak_memory_gib = _peak_memory_gib(cell, model, batch) if cell.device == "cuda" else None
    times = [_timed_ms(cell, model, batch) for _ in range(repeats or (5 if cell.device == "cuda" else 1))]
    cost = Cost(
        load_time_s=load_time_s,
        latency_ms=statistics.median(times),
        peak_memory_gib=peak_memory_gib,
        repeatable=_same_bits(captured_NF, again_NF),
    )
    return cost, tuple(kernels)


def _timed_ms(cell: Cell, model: nn.Module, batch: Sequence[Forward]) -> float:
    synchronize(cell.device)
    start = time.perf_counter()
    run_forwards(cell, model, batch)
    synchronize(cell.device)
    return (time.perf_counter() - start) * 1e3


def _peak_memory_gib(cell: Cell, model: nn.Module, batch: Sequence[Forward]) -> float:
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
