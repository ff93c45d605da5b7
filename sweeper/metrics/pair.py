"""How one tensor differs from another: sums and counts on the device, figures on the host (`docs/measures.md`).

Shapes: N tokens, F features, A accumulators, P planes (reference, candidate, difference).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter
from torch import Tensor

from sweeper.metrics.fast import Tables, fast_module
from sweeper.metrics.figures import Distance, cosine, distance, figures, rel_l2
from sweeper.metrics.precision import INT64_MIN, coarser_dtype, default_tolerance, max_ulp_distance
from sweeper.metrics.sums import Count, Pair, State, empty_state, merge
from sweeper.records.cell import PairMeasures

# Elements in a chunk. On the CPU a chunk (3 MiB for the three float64 planes) stays in the caches of a few cores; on a
# GPU it fills the device, and everything that it needs stays below 64 MiB.
_CPU_CHUNK = 2**17
_GPU_CHUNK = 2**19

_MEASURES = TypeAdapter(list[PairMeasures])


class _Part(NamedTuple):
    """What one chunk gives: figures a token, and scalars."""

    inner_NPP: Tensor  # inner products of the planes
    max_abs_N: Tensor  # -1 for a token without a finite element
    abs_sum: Tensor
    max_excess: Tensor
    max_ulp: Tensor
    counts: Tensor  # from FINITE to CANDIDATE_INF


class PairAccumulator:
    """Compares the rows of two tensors, batch by batch. Nothing is kept but a `State`.

    Squares of float64 numbers above 1e154 overflow: `rms` is then inf or unaffected, the cosines are NaN, and so is a
    ratio of two such sums. Squares of those below 1e-162 are 0. The other dtypes stay far from both.

    Attributes:
        dtypes: of the reference and of the candidate.
        coarser: the dtype in which ULPs are counted.
        tolerance: torch.testing's defaults for that dtype.
        state: what has been accumulated, on the device of the tensors.
    """

    def __init__(
        self, reference_dtype: torch.dtype, candidate_dtype: torch.dtype, into: State | torch.device | str
    ) -> None:
        """Adds to a state, in place; where a device is given, to an empty one there.

        Raises:
            TypeError: dtypes other than float16, bfloat16, float32 and float64.
        """
        self.coarser = coarser_dtype(reference_dtype, candidate_dtype)
        self.tolerance = default_tolerance(self.coarser)
        self.state = into if isinstance(into, State) else empty_state(into)
        self.dtypes = (reference_dtype, candidate_dtype)

    @torch.no_grad()
    def update(self, reference_NF: Tensor, candidate_NF: Tensor) -> None:
        """Adds N rows. Does not synchronise with the device. Several at once are faster on a GPU: `update_all`.

        Args:
            reference_NF, candidate_NF: same shape and device, in the dtypes given at the start; need not be contiguous.

        Raises:
            ValueError: the shapes differ or are not two-dimensional.
            TypeError: the dtypes are not those given at the start.
        """
        update_all([Update(self, reference_NF, candidate_NF)])

    def _check(self, reference_NF: Tensor, candidate_NF: Tensor) -> None:
        if reference_NF.shape != candidate_NF.shape or reference_NF.dim() != 2:
            shapes = f"{tuple(reference_NF.shape)} and {tuple(candidate_NF.shape)}"
            raise ValueError(f"cannot compare tensors of shapes {shapes}: give tokens x features, twice the same")
        if (reference_NF.dtype, candidate_NF.dtype) != self.dtypes:
            dtypes = f"{reference_NF.dtype} and {candidate_NF.dtype}"
            raise TypeError(f"cannot add tensors of {dtypes} to a comparison of {self.dtypes[0]} and {self.dtypes[1]}")

    def _update(self, reference_NF: Tensor, candidate_NF: Tensor) -> None:
        """Updates in plain torch: the definition."""
        if reference_NF.numel() == 0:
            self.state.counts[Count.ROWS] += len(reference_NF)
            return
        parts = [_part(*chunk, self.coarser) for chunk in _chunks(reference_NF, candidate_NF)]
        merged = merge(self.state, _joined(parts, reference_NF, candidate_NF))
        for mine, value in zip(self.state, merged, strict=True):
            mine.copy_(value)


class Update(NamedTuple):
    """Rows that an accumulator is to take."""

    accumulator: PairAccumulator
    reference_NF: Tensor
    candidate_NF: Tensor


@torch.no_grad()
def update_all(updates: Sequence[tuple[PairAccumulator, Tensor, Tensor]], tables: Tables | None = None) -> None:
    """`PairAccumulator.update` for each; those that are measured in one pass take few launches together.

    Args:
        updates: on one device; each an `Update`, or a tuple of the same.
        tables: the launches' addresses, kept from batch to batch. With them, the states are complete after `join_all`.
    """
    fused = fast_module(updates[0][1].device.type, "pair") if updates else None
    pairs = []
    for accumulator, reference_NF, candidate_NF in updates:
        accumulator._check(reference_NF, candidate_NF)
        if fused is None or not reference_NF.numel() or torch.float64 in accumulator.dtypes:
            accumulator._update(reference_NF, candidate_NF)
        else:
            pairs.append(Pair(accumulator.state, reference_NF, candidate_NF))
    if fused is not None and pairs:
        fused.update(pairs, tables)


def join_all(tables: Tables) -> None:
    """Adds what `update_all` has measured with these tables to its states, in one launch."""
    if tables.measured:
        importlib.import_module("sweeper.metrics.cuda.pair").join(tables)


def measure(reference_NF: Tensor, candidate_NF: Tensor) -> PairMeasures:
    """Compares two tensors of tokens x features. Raises like `PairAccumulator`."""
    accumulator = PairAccumulator(reference_NF.dtype, candidate_NF.dtype, reference_NF.device)
    accumulator.update(reference_NF, candidate_NF)
    return finish([accumulator])[0]


@torch.no_grad()
def measure_distance(reference_NF: Tensor, candidate_NF: Tensor) -> Distance:
    """The same of `measure`, bit for bit, at a fraction of its price. Raises like `PairAccumulator`."""
    accumulator = PairAccumulator(reference_NF.dtype, candidate_NF.dtype, reference_NF.device)
    accumulator._check(reference_NF, candidate_NF)
    plain = torch.float64 in accumulator.dtypes or fast_module(reference_NF.device.type, "pair") is None
    if plain and reference_NF.numel():
        squares_P = _squares(reference_NF, candidate_NF)
        if squares_P[:2].isfinite().all():  # then so are all elements
            return Distance(rel_l2(squares_P[:1], squares_P[2:]).item(), reference_NF.numel(), 0)
    accumulator.update(reference_NF, candidate_NF)
    return distance(accumulator.state)


def _squares(reference_NF: Tensor, candidate_NF: Tensor) -> Tensor:
    """The planes' sums of squares, on the host: those of `PairAccumulator._update` where they are finite."""
    inner_NPP = torch.cat(
        [
            _equal_inner(reference) if _are_equal(reference, candidate) else _inner(reference, candidate, planes_PNF)
            for reference, candidate, planes_PNF in _chunks(reference_NF, candidate_NF)
        ]
    )
    return inner_NPP.sum(0).diagonal().contiguous().cpu()


def finish(accumulators: Sequence[PairAccumulator]) -> list[PairMeasures]:
    """The figures of accumulators that share a device, with a single transfer to the host."""
    return _MEASURES.validate_python(finished(accumulators))


def finished(accumulators: Sequence[PairAccumulator]) -> list[dict[str, Any]]:
    """The fields of `finish`, to be put into larger records: hundreds are validated faster at once."""
    return figures(
        [accumulator.state for accumulator in accumulators], [accumulator.tolerance for accumulator in accumulators]
    )


def _chunks(reference_NF: Tensor, candidate_NF: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Rows of both, a chunk after the other, and memory for their planes."""
    features = reference_NF.shape[1]
    rows = max(1, (_CPU_CHUNK if reference_NF.device.type == "cpu" else _GPU_CHUNK) // features)
    # shared by all chunks: memory that is fresh for every chunk costs a third of the time on a CPU
    planes_PNF = reference_NF.new_empty((3, min(rows, len(reference_NF)), features), dtype=torch.float64)
    for reference, candidate in zip(reference_NF.split(rows), candidate_NF.split(rows), strict=True):
        yield reference, candidate, planes_PNF[:, : len(reference)]


def _are_equal(reference_NF: Tensor, candidate_NF: Tensor) -> bool:
    """Whether a chunk is the same on both sides; asked on the CPU alone, where looking synchronises nothing."""
    same_kind = reference_NF.device.type == "cpu" and reference_NF.dtype == candidate_NF.dtype
    return same_kind and torch.equal(reference_NF, candidate_NF)


def _part(reference_NF: Tensor, candidate_NF: Tensor, planes_PNF: Tensor, coarser: torch.dtype) -> _Part:
    """Measures a chunk; the easy cases with less work on the CPU, where looking at the values synchronises nothing."""
    if reference_NF.device.type == "cpu":
        if _are_equal(reference_NF, candidate_NF):
            part = _equal_part(reference_NF)
            if part.inner_NPP.isfinite().all():
                return part
        part = _finite_part(reference_NF, candidate_NF, planes_PNF, coarser)
        if part.abs_sum.isfinite():
            return part
    return _masked_part(reference_NF, candidate_NF, planes_PNF, coarser)


def _equal_part(reference_NF: Tensor) -> _Part:
    """Measures a chunk that equals the other side's and is finite."""
    inner_NPP = _equal_inner(reference_NF)
    zero = inner_NPP.new_zeros(())
    return _Part(
        inner_NPP=inner_NPP,
        max_abs_N=inner_NPP.new_zeros(len(inner_NPP)),
        abs_sum=zero,
        max_excess=zero,
        max_ulp=torch.tensor(INT64_MIN),
        counts=torch.tensor([reference_NF.numel(), 0, 0, 0, 0, 0, 0]),
    )


def _equal_inner(reference_NF: Tensor) -> Tensor:
    reference = reference_NF.double()
    squares_N = torch.linalg.vecdot(reference, reference)
    inner_NPP = squares_N.new_zeros((len(squares_N), 3, 3))
    inner_NPP[:, :2, :2] = squares_N[:, None, None]
    return inner_NPP


def _inner(reference_NF: Tensor, candidate_NF: Tensor, planes_PNF: Tensor) -> Tensor:
    """Fills the planes and multiplies them."""
    reference, candidate, difference = planes_PNF
    reference.copy_(reference_NF)
    candidate.copy_(candidate_NF)
    torch.sub(candidate, reference, out=difference)
    planes_NPF = planes_PNF.transpose(0, 1)
    return planes_NPF @ planes_NPF.mT


def _finite_part(reference_NF: Tensor, candidate_NF: Tensor, planes_PNF: Tensor, coarser: torch.dtype) -> _Part:
    """Measures a chunk whose elements are all finite."""
    max_ulp = max_ulp_distance(reference_NF, candidate_NF, coarser)
    inner_NPP = _inner(reference_NF, candidate_NF, planes_PNF)
    reference, candidate, difference = planes_PNF
    abs_difference = difference.abs_()
    abs_sum = abs_difference.sum()
    max_abs_N = abs_difference.amax(1)
    max_excess = torch.sub(
        abs_difference, reference.abs_(), alpha=default_tolerance(coarser).rtol, out=candidate
    ).amax()
    unequal = abs_difference.sign_().sum().long()  # exact; several times faster on a CPU than count_nonzero
    finite, none = unequal.new_full((), reference_NF.numel()), torch.zeros_like(unequal)
    counts = torch.stack([finite, unequal, none, none, none, none, none])
    return _Part(inner_NPP, max_abs_N, abs_sum, max_excess, max_ulp, counts)


def _masked_part(reference_NF: Tensor, candidate_NF: Tensor, planes_PNF: Tensor, coarser: torch.dtype) -> _Part:
    """Measures any chunk: what is not finite on both sides becomes 0 on both, and is counted."""
    finite_NF = reference_NF.isfinite() & candidate_NF.isfinite()
    part = _finite_part(
        reference_NF.masked_fill(~finite_NF, 0), candidate_NF.masked_fill(~finite_NF, 0), planes_PNF, coarser
    )
    reference_nan, candidate_nan = reference_NF.isnan(), candidate_NF.isnan()
    same = (reference_NF == candidate_NF) | (reference_nan & candidate_nan)
    masks = [finite_NF, ~(same | finite_NF), reference_nan, candidate_nan, reference_NF.isinf(), candidate_NF.isinf()]
    finite, *nonfinite = (torch.count_nonzero(mask) for mask in masks)
    return part._replace(
        max_abs_N=part.max_abs_N.masked_fill(~finite_NF.any(1), -1),
        counts=torch.stack([finite, part.counts[1], *nonfinite]),
    )


def _joined(parts: list[_Part], reference_NF: Tensor, candidate_NF: Tensor) -> State:
    """The state of one update."""
    inner_NPP = torch.cat([part.inner_NPP for part in parts])
    inner_PP = inner_NPP.sum(0)
    max_abs_N = torch.cat([part.max_abs_N for part in parts])
    references, candidates, differences = inner_NPP.diagonal(dim1=1, dim2=2).unbind(1)
    cosine_N = cosine(references, candidates, differences, inner_NPP[:, 0, 1])
    token = max_abs_N.argmax(0, keepdim=True)
    reference_F = reference_NF.index_select(0, token)[0].double()
    candidate_F = candidate_NF.index_select(0, token)[0].double()
    finite_F = reference_F.isfinite() & candidate_F.isfinite()
    feature = (candidate_F - reference_F).abs().masked_fill(~finite_F, -1).argmax(0, keepdim=True)
    exists = max_abs_N.index_select(0, token) >= 0
    reals = [
        torch.stack([part.abs_sum for part in parts]).sum(0, keepdim=True),
        inner_PP.diagonal(),
        inner_PP[0, 1:2],
        max_abs_N.amax(0, keepdim=True),
        torch.stack([part.max_excess for part in parts]).amax(0, keepdim=True).clamp_min(0),
        cosine_N.masked_fill(max_abs_N < 0, torch.inf).amin(0, keepdim=True),
        reference_F.index_select(0, feature).masked_fill(~exists, torch.nan),
        candidate_F.index_select(0, feature).masked_fill(~exists, torch.nan),
    ]
    counts = [
        token.new_full((1,), len(reference_NF)),
        token.new_full((1,), reference_NF.numel()),
        torch.stack([part.counts for part in parts]).sum(0),
        torch.stack([part.max_ulp for part in parts]).amax(0, keepdim=True),
        token.masked_fill(~exists, -1),
        feature.masked_fill(~exists, -1),
    ]
    return State(torch.cat(reals), torch.cat(counts))
