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

MOST_REPEATS = 5
ENOUGH_MS = 100  # of timed forwards, where it is not said how many


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

    One forward is profiled and its output compared; those that are timed are not, and tell the memory too.

    Args:
        captured_NF: the same batch's output with hooks.
        repeats: how many forwards are timed; None is five, or fewer that take `ENOUGH_MS` together.
    """
    with record_kernels(cell.device) as kernels:
        again_NF = run_forwards(cell, model, batch)
    allocated = _start_of_peak() if cell.device == "cuda" else None
    times: list[float] = []
    while len(times) < (repeats or MOST_REPEATS) and (repeats or sum(times) < ENOUGH_MS):
        times.append(_timed_ms(cell, model, batch))
    cost = Cost(
        load_time_s=load_time_s,
        latency_ms=statistics.median(times),
        peak_memory_gib=None if allocated is None else _peak_memory_gib(model, allocated),
        repeatable=_same_bits(captured_NF, again_NF),
    )
    return cost, tuple(kernels)


def _timed_ms(cell: Cell, model: nn.Module, batch: Sequence[Forward]) -> float:
    synchronize(cell.device)
    start = time.perf_counter()
    run_forwards(cell, model, batch)
    synchronize(cell.device)
    return (time.perf_counter() - start) * 1e3


def _start_of_peak() -> int:
    """Bytes that are allocated now; the peak is counted from here on."""
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _peak_memory_gib(model: nn.Module, allocated: int) -> float:
    """The weights that stay, and what a bare forward needed beyond what was allocated before it."""
    beyond = torch.cuda.max_memory_allocated() - allocated
    weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()] if not tensor.is_meta)
    return (weights + beyond) / 2**30


def _same_bits(first: Tensor, second: Tensor) -> bool:
    same = first.eq(second) | (first.isnan() & second.isnan())
    return bool(same.all())
