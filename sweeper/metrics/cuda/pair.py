"""The measures of `pair.py` on a GPU: one pass over each pair, many pairs a launch. Needs Triton.

`pair.py` defines every figure; this fills the same `State`. Counts, maxima, ULPs and places are equal to it; sums,
which are float64 here too, up to the order of additions. That order depends on shapes, strides and alignment alone, and
there are no atomics, so the same tensors give the same bits. Nothing synchronises with the device.

The kernels are in `kernels.py`, which leaves partials of the pairs, and in `joining.py`, which adds them to the states:
that needs no pairs any more, so once a batch is enough. Shapes: N tokens, F features.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from sweeper.metrics.cuda import joining, kernels
from sweeper.metrics.fast import Measured, Tables
from sweeper.metrics.precision import coarser_dtype, default_tolerance
from sweeper.metrics.sums import Pair, State

DTYPES = (torch.float16, torch.bfloat16, torch.float32)

# Elements that one warp measures: enough that its partial costs nothing, few enough that a layer fills the device.
_ELEMENTS_A_WARP = 2**15
# A warp a program, so that no barrier is needed. With 128 registers 16 warps fit into a multiprocessor: loads run far
# enough ahead that more warps, with fewer registers each, measured less on an H200.
_OPTIONS = {"num_warps": 1, "maxnreg": 128}
# Rows this long are measured one at a time: four of a vocabulary would leave few warps to a device.
_LONG_ROW = 2**15
_MOST_PAIRS = 2**16 - 1  # of a launch: what CUDA allows of a grid's second dimension
_MOST_REMEMBERED = 512  # pairs of a plan: 256 such plans take 50 MB of the host's memory
# Of the partials that wait to be joined: what about 200 GB of large outputs leave.
_MEASURED_BYTES = 2**28
_TRITON = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}


class _Kind(NamedTuple):
    """What one launch is compiled for."""

    reference: torch.dtype
    candidate: torch.dtype
    aligned: bool  # every lane's eight elements are whole 16-byte words
    rows: int  # that are measured at a time


class _Launch:
    """Pairs of one kind, as the kernel's table has them but for the addresses.

    Attributes:
        members: which pairs.
    """

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self.members: list[int] = []
        self.partials = 0
        self.most_warps = 0
        self._numbers: list[int] = []

    def add(self, pair: int, N: int, F: int, strides: Sequence[int]) -> tuple[int, int]:
        """Which partials are to be its own: the first, and how many."""
        rows = max(1, _ELEMENTS_A_WARP // (self.kind.rows * F)) * self.kind.rows
        warps, first = -(-N // rows), self.partials
        self.members.append(pair)
        self._numbers += (0, 0, N, F, *strides, rows, first)
        self.partials += warps
        self.most_warps = max(self.most_warps, warps)
        return first, warps

    @functools.cached_property
    def blank(self) -> np.ndarray:
        """The table without addresses, a row a pair."""
        return np.array(self._numbers, np.int64).reshape(len(self.members), -1)

    def table(self, addresses_P2: np.ndarray) -> np.ndarray:
        """The table, in one row; the addresses are those of all pairs of the plan."""
        numbers = self.blank.copy()
        numbers[:, :2] = addresses_P2[self.members]
        return numbers.ravel()


def update(pairs: Sequence[Pair], tables: Tables | None = None) -> None:
    """Adds each pair's rows to its state, in place; of pairs that share a state, one after the other.

    Pairs that are the same memory on both sides (a block that returns its last module's output) are read once.

    Args:
        tables: the launches' addresses. With them, the states have the rows only after `join`.
    """
    kept = tables or Tables()
    addresses, shapes, firsts = [], [], []
    known: dict[tuple[Any, ...], int] = {}
    for number, (_, reference, candidate) in enumerate(pairs):  # a loop without calls: it runs once a pair and batch
        at = reference.data_ptr(), candidate.data_ptr()
        strides = *reference.stride(), *candidate.stride()
        shape = (reference.dtype, candidate.dtype, *reference.shape, strides, (at[0] | at[1]) % 16 == 0)
        addresses.append(at)
        shapes.append(shape)
        firsts.append(known.setdefault((at, shape), number))
    plan = _plan if len(pairs) <= _MOST_REMEMBERED else _plan.__wrapped__
    launches, shares_S5 = plan(tuple(shapes), tuple(firsts))
    addresses_P2, device = np.array(addresses, np.int64), pairs[0].reference_NF.device
    partials = [_launch(launch, addresses_P2, kept, device) for launch in launches]
    kept.measured.append(Measured([pair.state for pair in pairs], partials, shares_S5))
    kept.measured_bytes += sum(one.nbytes for one in partials)
    if tables is None or kept.measured_bytes > _MEASURED_BYTES:
        join(kept)


@functools.lru_cache(maxsize=256)  # layers, batches and candidates repeat their shapes, though not their addresses
def _plan(shapes: tuple[tuple[Any, ...], ...], firsts: tuple[int, ...]) -> tuple[list[_Launch], np.ndarray]:
    """The launches; and of each pair its launch, the first of its partials and their number, N and F.

    Args:
        shapes: of each pair: both dtypes, N, F, the strides (row and column, of both), whether both addresses are
            whole 16-byte words.
        firsts: of each pair, the first one that is the same memory: itself, or one before it.
    """
    launches: list[_Launch] = []
    filling: dict[_Kind, int] = {}
    shares: list[tuple[int, int, int, int, int]] = []
    for number, ((reference, candidate, N, F, strides, whole), first) in enumerate(zip(shapes, firsts, strict=True)):
        if first < number:
            shares.append(shares[first])
            continue
        kind = _Kind(reference, candidate, whole and _is_aligned(F, *strides), 4 if F < _LONG_ROW else 1)
        if kind not in filling or len(launches[filling[kind]].members) == _MOST_PAIRS:
            filling[kind] = len(launches)
            launches.append(_Launch(kind))
        shares.append((filling[kind], *launches[filling[kind]].add(number, N, F, strides), N, F))
    return launches, np.array(shares, np.int64)


def _is_aligned(F: int, reference_row: int, reference_column: int, candidate_row: int, candidate_column: int) -> bool:
    return reference_column == candidate_column == 1 and (F | reference_row | candidate_row) % 8 == 0


def _launch(launch: _Launch, addresses_P2: np.ndarray, tables: Tables, device: torch.device) -> Tensor:
    """The partials, [fields, partials]; fields that are integers as their bits."""
    table = tables.place(launch.table(addresses_P2), device)
    partials = table.new_empty((kernels.PARTIAL_FIELDS.value, launch.partials), dtype=torch.float64)
    with torch.cuda.device_of(table):
        kernels.measure[(launch.most_warps, len(launch.members))](
            *(table, partials, launch.partials), **_constants(launch.kind), **_OPTIONS
        )
    return partials


@functools.cache
def _constants(kind: _Kind) -> dict[str, Any]:
    coarser = coarser_dtype(kind.reference, kind.candidate)
    return {
        "REFERENCE": _TRITON[kind.reference],
        "CANDIDATE": _TRITON[kind.candidate],
        "COARSER": _TRITON[coarser],
        "RTOL": default_tolerance(coarser).rtol,
        "ALIGNED": kind.aligned,
        "R": kind.rows,
    }


def join(tables: Tables) -> None:
    """Adds all that was measured with these tables to its states, in one launch."""
    if not tables.measured:
        return
    targets = np.concatenate([_targets(*measured) for measured in tables.measured])
    targets = targets[targets[:, 0].argsort(kind="stable")]  # what a state gets stays in its order
    table = tables.place(targets.ravel(), tables.measured[0].partials[0].device)
    with torch.cuda.device_of(table):
        joining.join[(len(targets),)](table, len(targets), num_warps=8)
    tables.measured, tables.measured_bytes = [], 0


def _targets(states: Sequence[State], partials: Sequence[Tensor], shares_S5: np.ndarray) -> np.ndarray:
    """The rows of `joining.join`'s table."""
    launch_S = shares_S5[:, 0]
    starts, apart = (np.array(numbers) for numbers in zip(*((p.data_ptr(), p.shape[1]) for p in partials), strict=True))
    targets = np.empty((len(states), joining.TARGET_COLUMNS.value), np.int64)
    targets[:, 0] = [state.reals.data_ptr() for state in states]
    targets[:, 1] = [state.counts.data_ptr() for state in states]
    targets[:, 2] = starts[launch_S] + 8 * shares_S5[:, 1]
    targets[:, 3] = apart[launch_S]
    targets[:, 4:] = shares_S5[:, 2:]
    return targets
