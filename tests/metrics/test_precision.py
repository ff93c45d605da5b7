"""ULP distances against walking from number to number, and the tolerances against torch.testing itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sweeper.metrics.pair import measure
from sweeper.metrics.precision import INT64_MIN, coarser_dtype, default_tolerance, max_ulp_distance, ordinal
from tests.metrics import oracle

NUMPY = {torch.float16: np.float16, torch.float32: np.float32, torch.float64: np.float64}
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def ulp(reference: torch.Tensor, candidate: torch.Tensor) -> int:
    coarser = coarser_dtype(reference.dtype, candidate.dtype)
    return int(max_ulp_distance(reference, candidate, coarser)) - INT64_MIN


@settings(deadline=None, max_examples=100)
@given(st.sampled_from(list(NUMPY)), st.floats(-3, 3, width=16), st.integers(0, 40))
def test_distance_is_the_number_of_steps(dtype: torch.dtype, start: float, steps: int) -> None:
    """Also across zero and through the subnormals: steps are taken by numpy."""
    scalar = NUMPY[dtype]
    for origin in (scalar(start), scalar(np.finfo(scalar).smallest_subnormal * 20)):
        value = origin
        for _ in range(steps):
            value = np.nextafter(value, scalar(-np.inf))
        assert ulp(torch.tensor([float(origin)], dtype=dtype), torch.tensor([float(value)], dtype=dtype)) == steps


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_16_bit_numbers_are_one_apart(dtype: torch.dtype) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype)
    values = values[~values.isnan()].sort().values.unique_consecutive()  # both zeros are one number
    steps = ordinal(values).int().diff()
    assert torch.equal(steps, torch.ones_like(steps))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_whole_range_does_not_overflow(dtype: torch.dtype) -> None:
    largest = torch.tensor([torch.finfo(dtype).max], dtype=dtype)
    assert ulp(-largest, largest) == 2 * oracle.rank(largest.item(), dtype)


def test_zeros_are_one_number_and_overflow_is_next_to_the_largest() -> None:
    assert ulp(torch.tensor([0.0]), torch.tensor([-0.0])) == 0
    assert ulp(torch.tensor([1e30]), torch.tensor([65504.0], dtype=torch.float16)) == 1
    assert measure(torch.tensor([[1e30]]), torch.tensor([[65504.0]], dtype=torch.float16)).max_ulp == 1.0


def test_the_coarser_dtype_counts() -> None:
    assert coarser_dtype(torch.float16, torch.bfloat16) == torch.bfloat16
    assert coarser_dtype(torch.float64, torch.float32) == torch.float32
    # 1 + 2^-9 rounds to 1 in bfloat16.
    assert ulp(torch.tensor([1 + 2**-9]), torch.tensor([1.0], dtype=torch.bfloat16)) == 0
    assert ulp(torch.tensor([1 + 2**-9]), torch.tensor([1.0])) == 2**14


@pytest.mark.parametrize("dtype", DTYPES)
def test_tolerances_are_those_of_torch_testing(dtype: torch.dtype) -> None:
    """Looks at both sides of the limit that `assert_close` draws itself."""
    rtol, atol = default_tolerance(dtype)
    reference = torch.tensor([[2.0]], dtype=torch.float64)
    limit = atol + rtol * 2
    for factor in (0.99, 1.01):
        candidate = reference + limit * factor
        try:
            torch.testing.assert_close(candidate, reference.to(dtype), check_dtype=False)
            allowed = True
        except AssertionError:
            allowed = False
        assert allowed == (factor < 1)
        assert measure(reference.to(dtype), candidate).allclose == allowed


def test_distance_is_nan_where_nothing_is_finite() -> None:
    assert math.isnan(measure(torch.tensor([[math.inf]]), torch.tensor([[math.inf]])).max_ulp)
