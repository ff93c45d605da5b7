"""The fused kernels against their twin in plain torch; on a GPU, or in Triton's interpreter (TRITON_INTERPRET=1)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sweeper.metrics.pair import PairAccumulator, measure, measure_distance

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a GPU, or TRITON_INTERPRET=1", allow_module_level=True)

from sweeper.metrics.cuda import pair as fused
from sweeper.metrics.fast import Tables
from sweeper.metrics.sums import Count, Pair, Real, State
from tests.metrics import twin
from tests.metrics.twin import assert_same, by_the_twin, spoil

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(1, 1), (5, 24), (3, 257), (37, 8)]
if DEVICE == "cuda":
    SHAPES += [(700, 1024), (3, 151_669), (3, 151_936), (16_384, 128), (513, 3072)]


def a_pair(
    shape: tuple[int, int], reference: torch.dtype, candidate: torch.dtype, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    reference_NF, candidate_NF = twin.a_pair(shape, reference, candidate, scale)
    return reference_NF.to(DEVICE), candidate_NF.to(DEVICE)


def by_the_kernels(pairs: list[tuple[Tensor, Tensor]]) -> State:
    state = PairAccumulator(pairs[0][0].dtype, pairs[0][1].dtype, DEVICE).state
    fused.update([Pair(state, *pair) for pair in pairs])
    return State(state.reals.cpu(), state.counts.cpu())


@pytest.mark.parametrize("candidate", fused.DTYPES, ids=str)
@pytest.mark.parametrize("reference", fused.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin(shape: tuple[int, int], reference: torch.dtype, candidate: torch.dtype) -> None:
    pair = a_pair(shape, reference, candidate)
    assert_same(by_the_kernels([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("dtype", [*fused.DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_distance_alone_has_the_bits_of_the_measures(shape: tuple[int, int], dtype: torch.dtype) -> None:
    reference_NF, candidate_NF = a_pair(shape, dtype, dtype)
    pairs = [(reference_NF, candidate_NF), (reference_NF, reference_NF.clone())]
    pairs.append((reference_NF.clone(), candidate_NF.clone()))
    spoil(*pairs[-1])
    for pair in pairs:
        measures, distance = measure(*pair), measure_distance(*pair)
        wanted = {name: getattr(measures, name) for name in distance._fields}
        assert repr(distance._asdict()) == repr(wanted)  # in words, in which a NaN is like another


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nan_and_inf_are_counted(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pair = a_pair(shape, dtype, dtype)
    spoil(*pair)
    assert_same(by_the_kernels([pair]), by_the_twin([pair]))


@pytest.fixture
def rows_of_16_are_long(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Plans are kept by address and shape, which other tests may have too."""
    monkeypatch.setattr(fused, "_LONG_ROW", 16)
    fused._plan.cache_clear()
    yield
    fused._plan.cache_clear()


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(5, 24), (3, 257)], ids=str)
def test_long_rows(shape: tuple[int, int], dtype: torch.dtype, rows_of_16_are_long: None) -> None:
    pair = a_pair(shape, dtype, dtype)
    assert_same(by_the_kernels([pair]), by_the_twin([pair]))
    spoil(*pair)
    assert_same(by_the_kernels([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38, 6e-8, 3e4, 1e38])
@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
def test_tiny_and_huge(dtype: torch.dtype, scale: float) -> None:
    pair = a_pair((5, 24), dtype, dtype, scale)
    assert_same(by_the_kernels([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
def test_signs_and_zeros_have_the_twins_ulp_distance(dtype: torch.dtype) -> None:
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, largest, -largest, smallest, -smallest], dtype=dtype, device=DEVICE)
    for reference, candidate in torch.cartesian_prod(torch.arange(8), torch.arange(8)).tolist():
        pair = values[reference].reshape(1, 1), values[candidate].reshape(1, 1)
        assert_same(by_the_kernels([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("dtype", fused.DTYPES, ids=str)
def test_views(dtype: torch.dtype) -> None:
    """Rows apart, columns apart, transposed, and starting at an odd address."""
    reference_NF, candidate_NF = a_pair((37, 48), dtype, dtype)
    views: list[tuple[Tensor, Tensor]] = [
        (reference_NF[:, 8:24], candidate_NF[:, 8:24]),
        (reference_NF[1:, 1:17], candidate_NF[1:, 3:19]),
        (reference_NF[::2, ::3], candidate_NF[::2, ::3]),
        (reference_NF.T, candidate_NF.T.contiguous()),
        (reference_NF[:1].expand(5, 48), candidate_NF[:5]),
    ]
    for pair in views:
        assert_same(by_the_kernels([pair]), by_the_twin([pair]))


def test_the_first_of_equal_worst_elements_counts() -> None:
    reference_NF = torch.zeros(40, 72, dtype=torch.bfloat16, device=DEVICE)
    candidate_NF = reference_NF.clone()
    candidate_NF[7, 65] = candidate_NF[7, 66] = candidate_NF[8, 0] = candidate_NF[39, 1] = 1.0
    state = by_the_kernels([(reference_NF, candidate_NF), (reference_NF, candidate_NF)])
    assert state.counts[[Count.WORST_TOKEN, Count.WORST_FEATURE]].tolist() == [7, 65]
    candidate_NF[6, 71] = -1.0  # a row before, a column behind
    state = by_the_kernels([(reference_NF, candidate_NF)])
    assert state.counts[[Count.WORST_TOKEN, Count.WORST_FEATURE]].tolist() == [6, 71]


@pytest.mark.parametrize("nans", [1, 70, 200])
def test_where_nothing_differs_the_first_finite_element_is_the_worst(nans: int) -> None:
    reference_NF = torch.ones(5, 257, dtype=torch.bfloat16, device=DEVICE)
    reference_NF[0] = reference_NF[1, :nans] = math.nan
    state = by_the_kernels([(reference_NF, reference_NF)])
    assert state.counts[[Count.WORST_TOKEN, Count.WORST_FEATURE]].tolist() == [1, nans]
    assert state.reals[[Real.MAX_ABS, Real.WORST_REFERENCE, Real.WORST_CANDIDATE]].tolist() == [0, 1, 1]


def test_batches_are_merged_in_order() -> None:
    pairs = [a_pair(shape, torch.bfloat16, torch.float32) for shape in [(3, 24), (5, 24), (4, 24)]]
    assert_same(by_the_kernels(pairs), by_the_twin(pairs))


def test_many_pairs_a_launch_are_the_same_bits_as_one() -> None:
    pairs = [a_pair((rows, 24), torch.bfloat16, torch.bfloat16) for rows in (1, 5, 37)]
    pairs.append(pairs[0])  # the same memory, another state
    together = [PairAccumulator(torch.bfloat16, torch.bfloat16, DEVICE).state for _ in pairs]
    tables = Tables()
    for _ in range(2):
        tables.rewind()
        fused.update([Pair(state, *pair) for state, pair in zip(together, pairs, strict=True)], tables)
        fused.join(tables)
    for state, pair in zip(together, pairs, strict=True):
        alone = by_the_kernels([pair, pair])
        assert torch.equal(alone.reals, state.reals.cpu())
        assert torch.equal(alone.counts, state.counts.cpu())


def test_no_launch_has_more_pairs_than_a_grid_takes() -> None:
    """Small outputs of many texts, one after the other: 100,000 places, of two kinds, that nobody reads."""
    dtypes = torch.bfloat16, torch.bfloat16
    shapes = tuple((*dtypes, 1, 8 + pair % 2, (16, 1, 16, 1), True) for pair in range(200_000))
    launches, shares = fused._plan.__wrapped__(shapes, tuple(range(len(shapes))))
    assert all(len(launch.members) <= 2**16 - 1 for launch in launches)
    assert len({tuple(share[:2]) for share in shares.tolist()}) == len(shapes)
    for number, (launch, first, *_) in enumerate(shares.tolist()):
        assert launches[launch].members[first] == number  # one partial a pair
        assert launches[launch].kind.aligned == (shapes[number][3] == 8)


@pytest.mark.parametrize("limit", [1, 2**28])
def test_what_is_joined_late_is_joined_in_order(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A state that takes part several times, in launches of two kinds; joined each time, or once."""
    monkeypatch.setattr(fused, "_MEASURED_BYTES", limit)
    pairs = [a_pair(shape, torch.bfloat16, torch.bfloat16) for shape in [(3, 24), (5, 17), (4, 24)]]
    late, other = (PairAccumulator(torch.bfloat16, torch.bfloat16, DEVICE).state for _ in range(2))
    tables = Tables()
    for pair in pairs:
        fused.update([Pair(late, *pair), Pair(other, *pair), Pair(late, *pair)], tables)
    fused.join(tables)
    for state, expected in (late, [pair for pair in pairs for _ in range(2)]), (other, pairs):
        at_once = by_the_kernels(expected)
        assert torch.equal(at_once.reals, state.reals.cpu())
        assert torch.equal(at_once.counts, state.counts.cpu())
