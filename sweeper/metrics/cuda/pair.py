"""The measures of `pair.py` on a GPU: one pass over each pair, many pairs a launch. Needs Triton.

`pair.py` defines every figure; this fills the same `State`. Counts, maxima, ULPs and places are equal to it; sums,
which are float64 here too, up to the order of additions. That order depends on shapes, strides and alignment alone, and
there are no atomics, so the same tensors give the same bits. Nothing synchronises with the device.

The kernels are in `kernels.py`, which leaves partials of the pairs, and in `joining.py`, which adds them to the states:
that needs no pairs any more, so once a batch is enough. Shapes: N tokens, F features.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, NamedTuple

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


class _Place(NamedTuple):
    """Where the two tensors of a pair are, and of what kind."""

    dtypes: tuple[torch.dtype, torch.dtype]
    reference: int
    candidate: int
    N: int
    F: int
    reference_row: int
    reference_column: int
    candidate_row: int
    candidate_column: int


class _Launch:
    """Pairs of one kind, as the kernel's table has them."""

    def __init__(self, kind: _Kind) -> None:
        self.kind = kind
        self.numbers: list[int] = []
        self.pairs = 0
        self.partials = 0
        self.most_warps = 0

    def add(self, place: _Place) -> tuple[int, int]:
        """Which partials are to be its own: the first, and how many."""
        rows = max(1, _ELEMENTS_A_WARP // (self.kind.rows * place.F)) * self.kind.rows
        warps, first = -(-place.N // rows), self.partials
        self.numbers += (*place[1:], rows, first)
        self.pairs += 1
        self.partials += warps
        self.most_warps = max(self.most_warps, warps)
        return first, warps


def update(pairs: Sequence[Pair], tables: Tables | None = None) -> None:
    """Adds each pair's rows to its state, in place; of pairs that share a state, one after the other.

    Pairs that are the same memory on both sides (a block that returns its last module's output) are read once.

    Args:
        tables: the launches' addresses. With them, the states have the rows only after `join`.
    """
    kept = tables or Tables()
    plan = _plan if len(pairs) <= _MOST_REMEMBERED else _plan.__wrapped__
    launches, shares = plan(tuple([_place(*pair) for pair in pairs]))
    partials = [_launch(launch, kept, pairs[0].reference_NF.device) for launch in launches]
    kept.measured += [
        Measured(pair.state, partials[launch], *share) for pair, (launch, *share) in zip(pairs, shares, strict=True)
    ]
    kept.measured_bytes += sum(one.nbytes for one in partials)
    if tables is None or kept.measured_bytes > _MEASURED_BYTES:
        join(kept)


def _place(_: State, reference: Tensor, candidate: Tensor) -> tuple[Any, ...]:
    """The fields of `_Place`."""
    return (
        *((reference.dtype, candidate.dtype), reference.data_ptr(), candidate.data_ptr()),
        *(*reference.shape, *reference.stride(), *candidate.stride()),
    )


@functools.lru_cache(maxsize=256)  # batches of one shape mostly have the addresses of the one before
def _plan(places: tuple[tuple[Any, ...], ...]) -> tuple[list[_Launch], list[tuple[int, int, int, int, int]]]:
    """The launches; and of each pair its launch, the first of its partials and their number, N and F."""
    launches: list[_Launch] = []
    filling: dict[_Kind, int] = {}
    known: dict[tuple[Any, ...], tuple[int, int, int, int, int]] = {}
    for fields in places:
        if fields not in known:
            place = _Place(*fields)
            kind = _Kind(*place.dtypes, _is_aligned(place), 4 if place.F < _LONG_ROW else 1)
            if kind not in filling or launches[filling[kind]].pairs == _MOST_PAIRS:
                filling[kind] = len(launches)
                launches.append(_Launch(kind))
            known[fields] = (filling[kind], *launches[filling[kind]].add(place), place.N, place.F)
    return launches, [known[fields] for fields in places]


def _is_aligned(place: _Place) -> bool:
    return (
        place.reference_column == place.candidate_column == 1
        and (place.F | place.reference_row | place.candidate_row) % 8 == 0
        and (place.reference | place.candidate) % 16 == 0
    )


def _launch(launch: _Launch, tables: Tables, device: torch.device) -> Tensor:
    """The partials, [fields, partials]; fields that are integers as their bits."""
    table = tables.place(launch.numbers, device)
    partials = table.new_empty((kernels.PARTIAL_FIELDS.value, launch.partials), dtype=torch.float64)
    with torch.cuda.device_of(table):
        kernels.measure[(launch.most_warps, launch.pairs)](
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
    targets = [
        (
            *(state.reals.data_ptr(), state.counts.data_ptr(), partials.data_ptr() + 8 * first, partials.shape[1]),
            *(number, N, F),
        )
        for state, partials, first, number, N, F in tables.measured
    ]
    targets.sort(key=operator.itemgetter(0))  # what a state gets stays in its order
    table = tables.place([*itertools.chain.from_iterable(targets)], tables.measured[0].partials.device)
    with torch.cuda.device_of(table):
        joining.join[(len(targets),)](table, len(targets), num_warps=8)
    tables.measured, tables.measured_bytes = [], 0
