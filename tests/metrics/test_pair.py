"""`PairMeasures` against an exact, element-by-element oracle, on random shapes, dtypes and special values."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sweeper.metrics.cpu
from sweeper.metrics import pair
from sweeper.metrics.fast import fast_module
from sweeper.metrics.pair import PairAccumulator, finish, measure, measure_distance
from sweeper.records.cell import PairMeasures
from tests.metrics import oracle

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The table in the documentation of torch.testing.assert_close.
TOLERANCES = {
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (1.6e-2, 1e-5),
    torch.float32: (1.3e-6, 1e-5),
    torch.float64: (1e-7, 1e-7),
}
EXACT = (
    *("numel", "finite", "max_abs", "max_ulp", "allclose", "rtol", "atol"),
    *("reference_nan", "candidate_nan", "reference_inf", "candidate_inf", "nonfinite_mismatch"),
    *("worst_token", "worst_feature", "worst_reference", "worst_candidate"),
)

# Huge and tiny, but not so that squares leave float64: that only float64 can do, and has its own test.
_special = st.sampled_from(
    [
        0.0,
        -0.0,
        math.nan,
        math.inf,
        -math.inf,
        65504.0,
        3.3895e38,
        -3.4e38,
        1e-45,
        -1e-41,
        6e-8,
        9.2e-41,
        1.0,
        1 + 2**-11,
    ]
)
_number = st.one_of(st.floats(-4, 4, width=16), st.floats(-1e30, 1e30).filter(lambda x: x == 0 or abs(x) > 1e-40))


@st.composite
def pairs(draw: st.DrawFn, min_rows: int = 0, finite: bool = False) -> tuple[Tensor, Tensor]:
    rows, features = draw(st.integers(min_rows, 5)), draw(st.integers(1, 7))
    reference_dtype, candidate_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    element = st.floats(-60000, 60000, width=16) if finite else st.one_of(_number, _special)
    size = rows * features
    values = torch.tensor(draw(st.lists(element, min_size=size, max_size=size)), dtype=torch.float64)
    reference_NF = values.to(reference_dtype).reshape(rows, features)
    changes = draw(st.lists(st.one_of(st.none(), st.floats(-0.01, 0.01), element), min_size=size, max_size=size))
    changed = [
        value if change is None else value * (1 + change) if abs(change) <= 0.01 else change
        for value, change in zip(reference_NF.double().flatten().tolist(), changes, strict=True)
    ]
    candidate_NF = torch.tensor(changed, dtype=torch.float64).to(candidate_dtype).reshape(rows, features)
    if draw(st.booleans()):  # the same values, one column apart in memory
        reference_NF = reference_NF.repeat_interleave(2, dim=1)[:, ::2]
        candidate_NF = candidate_NF.T.contiguous().T
    return reference_NF, candidate_NF


def expected(reference_NF: Tensor, candidate_NF: Tensor) -> dict[str, Any]:
    coarser = max(reference_NF.dtype, candidate_NF.dtype, key=lambda dtype: torch.finfo(dtype).eps)
    rtol, atol = TOLERANCES[coarser]
    return oracle.measures(reference_NF.double().tolist(), candidate_NF.double().tolist(), coarser, rtol, atol)


def assert_same(measured: PairMeasures, expected: dict[str, Any], relative: float = 1e-12) -> None:
    for name, value in expected.items():
        ours = getattr(measured, name)
        exact = name in EXACT or not isinstance(value, float)
        same = ours == value if exact else math.isclose(ours, value, rel_tol=relative, abs_tol=1e-12)
        assert same or (value != value and ours != ours), f"{name}: {ours} instead of {value}"


@pytest.fixture
def plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behaves as where numba cannot be imported."""
    monkeypatch.setattr(pair, "fast_module", lambda *_: None)


@settings(deadline=None, max_examples=250)
@given(pairs())
def test_equals_the_oracle(both: tuple[Tensor, Tensor]) -> None:
    assert_same(measure(*both), expected(*both))


def test_plain_torch_equals_the_oracle(plain_torch: None) -> None:
    @settings(deadline=None, max_examples=250)
    @given(pairs())
    def check(both: tuple[Tensor, Tensor]) -> None:
        assert_same(measure(*both), expected(*both))

    check()


@pytest.mark.parametrize("definition", ["pair", "language"])
def test_does_without_numba(definition: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its modules are not imported yet, and numba cannot be."""
    for name in ("pair", "kernels", "language", "compiled"):
        monkeypatch.delitem(sys.modules, f"sweeper.metrics.cpu.{name}", raising=False)
        monkeypatch.delattr(sweeper.metrics.cpu, name, raising=False)
    monkeypatch.setitem(sys.modules, "numba", None)
    assert fast_module.__wrapped__("cpu", definition) is None


@pytest.mark.parametrize("chunk", [1, 7])
def test_chunks_change_nothing(chunk: int, plain_torch: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pair, "_CPU_CHUNK", chunk)

    @settings(deadline=None, max_examples=60)
    @given(pairs())
    def check(both: tuple[Tensor, Tensor]) -> None:
        assert_same(measure(*both), expected(*both))

    check()


@settings(deadline=None, max_examples=100)
@given(pairs(min_rows=1), st.data())
def test_batches_change_nothing(both: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    reference_NF, candidate_NF = both
    cuts = sorted(data.draw(st.lists(st.integers(0, len(reference_NF)), max_size=4)))
    accumulator = PairAccumulator(reference_NF.dtype, candidate_NF.dtype, "cpu")
    for start, end in zip([0, *cuts], [*cuts, len(reference_NF)], strict=True):
        accumulator.update(reference_NF[start:end], candidate_NF[start:end])
    assert_same(finish([accumulator])[0], expected(reference_NF, candidate_NF))


@settings(deadline=None, max_examples=60)
@given(pairs(min_rows=2), st.data())
def test_pads_do_not_take_part(both: tuple[Tensor, Tensor], data: st.DataObject) -> None:
    """Rows selected by index, as a layout does it: what the other rows hold is of no importance."""
    reference_NF, candidate_NF = both
    rows = data.draw(st.lists(st.integers(0, len(reference_NF) - 1), unique=True))
    index = torch.tensor(rows, dtype=torch.int64)
    selected = measure(reference_NF[index], candidate_NF[index])
    pads = torch.ones(len(reference_NF), dtype=torch.bool)
    pads[index] = False
    reference_NF[pads] = math.nan
    candidate_NF[pads] = 1.0
    assert_same(measure(reference_NF[index], candidate_NF[index]), expected(reference_NF[index], candidate_NF[index]))
    assert selected.reference_nan == measure(reference_NF[index], candidate_NF[index]).reference_nan


@settings(deadline=None, max_examples=60)
@given(pairs(min_rows=1, finite=True))
def test_identical_tensors_are_exactly_identical(both: tuple[Tensor, Tensor]) -> None:
    measures = measure(both[0], both[0].clone())
    assert (measures.equal_fraction, measures.max_abs, measures.rel_l2, measures.max_ulp) == (1.0, 0.0, 0.0, 0.0)
    assert (measures.cosine, measures.min_token_cosine, measures.sqnr_db) == (1.0, 1.0, math.inf)
    assert measures.allclose
    assert (measures.worst_token, measures.worst_feature) == (0, 0)


@settings(deadline=None, max_examples=40)
@given(st.lists(pairs(), max_size=20))
def test_many_accumulators_finish_together_bit_for_bit(several: list[tuple[Tensor, Tensor]]) -> None:
    """The width of torch's columns decides which of its square roots and logarithms run."""
    accumulators = []
    for reference_NF, candidate_NF in several:
        accumulator = PairAccumulator(reference_NF.dtype, candidate_NF.dtype, "cpu")
        accumulator.update(reference_NF, candidate_NF)
        accumulators.append(accumulator)
    # in words, in which a NaN is like another
    assert list(map(repr, finish(accumulators))) == [repr(finish([alone])[0]) for alone in accumulators]


def _assert_same_distance(reference_NF: Tensor, candidate_NF: Tensor) -> None:
    measures, distance = measure(reference_NF, candidate_NF), measure_distance(reference_NF, candidate_NF)
    wanted = {name: getattr(measures, name) for name in distance._fields}
    assert repr(distance._asdict()) == repr(wanted)  # in words, which give each bit, and in which a NaN is like another


_huge = st.sampled_from([1e200, -1e200, 1e308, -1.7e308, 1e154, 5e-324, 1e-200])


@pytest.mark.parametrize("chunk", [3, 2**17], ids=["chunks", "whole"])
@pytest.mark.parametrize("fused", [True, False], ids=["fused", "plain"])
def test_a_distance_alone_has_the_bits_of_the_measures(
    chunk: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair, "_CPU_CHUNK", chunk)
    if not fused:
        monkeypatch.setattr(pair, "fast_module", lambda *_: None)

    @settings(deadline=None, max_examples=150)
    @given(pairs(), st.integers(0, 5), st.none() | _huge)
    def check(both: tuple[Tensor, Tensor], equal_rows: int, huge: float | None) -> None:
        reference_NF, candidate_NF = both
        candidate_NF[:equal_rows] = reference_NF[:equal_rows].to(candidate_NF.dtype)
        if huge is not None and len(reference_NF):
            reference_NF[-1, -1] = torch.tensor(huge, dtype=torch.float64).to(reference_NF.dtype)
        _assert_same_distance(reference_NF, candidate_NF)
        _assert_same_distance(reference_NF, reference_NF.clone())
        _assert_same_distance(reference_NF, torch.zeros_like(candidate_NF))
        _assert_same_distance(torch.zeros_like(reference_NF), candidate_NF)

    check()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (117, 576), (700, 1024)], ids=str)
def test_a_distance_alone_has_the_bits_of_the_measures_at_any_size(shape: tuple[int, int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    reference_NF = torch.randn(shape, generator=generator, dtype=torch.float64)
    candidate_NF = reference_NF + 1e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    candidate_NF[: shape[0] // 2] = reference_NF[: shape[0] // 2]  # whole chunks that are equal
    _assert_same_distance(reference_NF.to(dtype), candidate_NF.to(dtype))
    _assert_same_distance(reference_NF, candidate_NF.to(dtype))
    reference_NF[-1:, -1:] = math.inf
    _assert_same_distance(reference_NF.to(dtype), candidate_NF.to(dtype))


def test_large_tensors_keep_float64_accuracy() -> None:
    """A million numbers of 1 + noise: float32 sums would be wrong in the fourth digit of the mean."""
    generator = torch.Generator().manual_seed(1)
    reference = 1 + torch.rand(1000, 1000, generator=generator)
    candidate = reference + 1e-4 * torch.rand(1000, 1000, generator=generator)
    measures = measure(reference, candidate)
    differences = (candidate.double() - reference.double()).flatten().tolist()
    assert math.isclose(measures.mean_abs, math.fsum(map(abs, differences)) / 1e6, rel_tol=1e-13)
    assert math.isclose(measures.rms, math.sqrt(math.fsum(d * d for d in differences) / 1e6), rel_tol=1e-13)
    worst = max(range(10**6), key=lambda index: abs(differences[index]))
    assert (measures.worst_token, measures.worst_feature) == divmod(worst, 1000)


def test_ties_for_the_worst_element_go_to_the_first_in_row_order() -> None:
    reference = torch.zeros(6, 4)
    candidate = torch.zeros(6, 4)
    candidate[1, 3] = candidate[2, 0] = candidate[4, 1] = -2.0
    accumulator = PairAccumulator(torch.float32, torch.float32, "cpu")
    for rows in (slice(0, 1), slice(1, 2), slice(2, 6)):
        accumulator.update(reference[rows], candidate[rows])
    measures = finish([accumulator])[0]
    assert (measures.worst_token, measures.worst_feature, measures.worst_candidate) == (1, 3, -2.0)


def test_nothing_finite_leaves_no_figure() -> None:
    measures = measure(torch.tensor([[math.nan, math.inf]]), torch.tensor([[math.nan, -math.inf]]))
    assert math.isnan(measures.max_abs)
    assert math.isnan(measures.min_token_cosine)
    assert (measures.finite, measures.equal_fraction, measures.nonfinite_mismatch) == (0, 0.5, 1)
    assert not measures.allclose
    assert measures.worst_token is None


def test_an_overflow_of_float64_squares_shows() -> None:
    """The docstring of `PairAccumulator` says so: inf, and NaN for a ratio of two such sums; never a wrong number."""
    measures = measure(
        torch.tensor([[1e200, 1.0]], dtype=torch.float64), torch.tensor([[-1e200, 1.0]], dtype=torch.float64)
    )
    assert (measures.max_abs, measures.rms, measures.finite) == (2e200, math.inf, 2)
    assert math.isnan(measures.rel_l2)
    assert math.isnan(measures.cosine)
    assert math.isnan(measures.min_token_cosine)
    one_side = measure(torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([[1e200]], dtype=torch.float64))
    assert math.isnan(one_side.cosine)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=f"{dtype}.*float16, bfloat16, float32, float64"):
        measure(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1))
    with pytest.raises(TypeError, match=f"{dtype}.*float16, bfloat16, float32, float64"):
        measure_distance(torch.zeros(1, 1, dtype=dtype), torch.zeros(1, 1))


def test_wrong_shapes_and_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        measure(torch.zeros(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="tokens x features"):
        measure(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="tokens x features"):
        measure_distance(torch.zeros(3).double(), torch.zeros(3).double())
    accumulator = PairAccumulator(torch.float32, torch.float32, "cpu")
    with pytest.raises(TypeError, match=r"torch.float16.*torch.float32"):
        accumulator.update(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.float16))


def test_rows_without_features_only_count_as_rows() -> None:
    accumulator = PairAccumulator(torch.float32, torch.float32, "cpu")
    accumulator.update(torch.zeros(2, 3), torch.zeros(2, 3))
    accumulator.update(torch.zeros(0, 3), torch.zeros(0, 3))
    accumulator.update(torch.zeros(4, 0), torch.zeros(4, 0))
    accumulator.update(torch.zeros(1, 3), torch.ones(1, 3))
    measures = finish([accumulator])[0]
    assert (measures.numel, measures.worst_token) == (9, 6)
