"""The compiled loops of language against plain torch. (`test_language.py` holds both against the definitions.)"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal

import pytest
import torch
from torch import Tensor

from sweeper.metrics import language

pytest.importorskip("numba")

import numpy as np
from numba import njit

from sweeper.metrics.cpu import language as language_cpu
from sweeper.metrics.language import LanguageAccumulator, Tokens
from tests.metrics.test_language import divergence

_exp = language_cpu._exp


@njit
def exponentials(numbers: np.ndarray) -> np.ndarray:
    result = np.empty_like(numbers)
    for number in range(len(numbers)):
        result[number] = _exp(numbers[number])
    return result


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_exponential_has_the_digits_of_float64() -> None:
    steps = np.log(2.0) / 2 * np.arange(-2000, 1)  # where the whole number k changes
    random = -np.concatenate([np.random.default_rng(0).random(3000) * scale for scale in (1e-9, 1, 40, 700)])
    numbers = np.concatenate([steps, np.nextafter(steps, -np.inf), random])
    numbers = numbers[numbers > -700]
    worst = max(
        abs(Decimal(float(found)) / Decimal(float(number)).exp() - 1)
        for number, found in zip(numbers, exponentials(numbers), strict=True)
    )
    assert worst < Decimal("3e-16")


def test_the_exponential_of_zero_is_one_and_far_below_nothing() -> None:
    one, *nothing = exponentials(np.array([0.0, -701.0, -1e4, -6.8e38])).tolist()
    assert one == 1.0
    assert all(0 <= number < 1e-300 for number in nothing)


def assert_same(ours: Tokens, theirs: Tokens) -> None:
    assert torch.equal(ours.marks_KN, theirs.marks_KN)
    torch.testing.assert_close(ours.reals_KN, theirs.reals_KN, rtol=1e-11, atol=1e-12)


def some_logits(tokens: int, vocabulary: int, *dtypes: torch.dtype, change: float = 0.1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens + vocabulary)
    reference_NV = 4 * torch.randn(tokens, vocabulary, generator=generator)
    candidate_NV = reference_NV + change * torch.randn(tokens, vocabulary, generator=generator)
    return reference_NV.to(dtypes[0]), candidate_NV.to(dtypes[-1])


# Some tokens a block; a piece of 1024 columns, and one that is not full; a token that is a block.
@pytest.mark.parametrize("shape", [(1, 1), (40, 24), (3, 1024), (3, 3001), (2, 70001)], ids=str)
@pytest.mark.parametrize("candidate", language_cpu.DTYPES, ids=str)
@pytest.mark.parametrize("reference", language_cpu.DTYPES, ids=str)
def test_equals_plain_torch(shape: tuple[int, int], reference: torch.dtype, candidate: torch.dtype) -> None:
    following = torch.arange(-1, shape[0] - 1) % shape[1]
    following[-1] = -1
    batch = (*some_logits(*shape, reference, candidate), following)
    assert_same(language_cpu.compare(*batch), language.compare(*batch))


@pytest.mark.parametrize("change", [1e-6, 0.01, 0.2, 1.0, 30.0, 1e4])
def test_logits_that_move_little_or_far(change: float) -> None:
    """Pieces with one exponential, with two, and both in one token."""
    reference_NV, candidate_NV = some_logits(4, 5000, torch.float32, change=change)
    reference_NV[1, :2000], candidate_NV[1, :2000] = 0.0, 0.01
    batch = reference_NV, candidate_NV, torch.tensor([3, 2500, -1, 4999])
    assert_same(language_cpu.compare(*batch), language.compare(*batch))


@pytest.mark.parametrize("change", [1e-7, 1e-4, 0.1, 1.0, 10.0])
def test_divergence_has_thirteen_digits(change: float) -> None:
    reference_NV, candidate_NV = some_logits(1, 60, torch.float32, change=change)
    found = language_cpu.compare(reference_NV, candidate_NV, torch.tensor([-1])).reals_KN[language._Real.KL_SUM, 0]
    assert abs(Decimal(float(found)) / divergence(reference_NV[0], candidate_NV[0]) - 1) < Decimal("1e-13")


def test_huge_logits_are_finite() -> None:
    largest = torch.finfo(torch.float32).max
    reference_NV = torch.tensor([[largest, -largest, 0.0], [0.0, 1.0, -largest]])
    batch = reference_NV, reference_NV.roll(1, dims=1), torch.tensor([0, 0])
    assert_same(language_cpu.compare(*batch), language.compare(*batch))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_number_of_16_bits_is_read_as_torch_reads_it(dtype: torch.dtype) -> None:
    """A token each, beside a zero: which are finite, and that nothing differs from the same number in float32."""
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    logits_NV = torch.stack([every, torch.zeros_like(every)], dim=1)
    tokens = language_cpu.compare(logits_NV, logits_NV.float(), torch.zeros(len(every), dtype=torch.int64))
    assert torch.equal(tokens.marks_KN[language._Count.FINITE], every.isfinite())
    assert torch.equal(tokens.reals_KN, torch.zeros(2, len(every), dtype=torch.float64))


@pytest.mark.parametrize("dtype", language_cpu.DTYPES, ids=str)
def test_the_first_of_equal_largest_logits_counts(dtype: torch.dtype) -> None:
    """Holds in one piece or in two, of negative logits, and of zeros with either sign."""
    rows = torch.full((4, 3000), -5.0)
    rows[0, 70] = rows[0, 71] = rows[0, 2000] = 2.0
    rows[1, 1500] = rows[1, 2500] = -1.0
    rows[2, 1500], rows[2, 2500] = -0.0, 0.0
    rows[3, 10], rows[3, 11] = -0.0, 0.0
    for column, same in ((70, [1, 0, 0, 0]), (1500, [0, 1, 1, 0]), (10, [0, 0, 0, 1]), (2500, [0, 0, 0, 0])):
        other = torch.zeros(4, 3000).index_fill(1, torch.tensor([column]), 1.0)
        tokens = language_cpu.compare(rows.to(dtype), other, torch.full((4,), -1))
        assert tokens.marks_KN[language._Count.TOP1_SAME].tolist() == same


@pytest.mark.parametrize("dtype", language_cpu.DTYPES, ids=str)
@pytest.mark.parametrize("value", [math.nan, -math.nan, math.inf, -math.inf])
def test_one_logit_that_is_not_finite(dtype: torch.dtype, value: float) -> None:
    for side in (0, 1):
        logits = some_logits(3, 2500, dtype)
        logits[side][1, 2400] = value
        batch = *logits, torch.tensor([1, 2, 3])
        assert_same(language_cpu.compare(*batch), language.compare(*batch))


def test_the_number_of_threads_and_blocks_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = *some_logits(23, 3001, torch.float32, torch.bfloat16), torch.arange(23)
    found = []
    for threads, block in ((1, 2**16), (2, 2**16), (3, 1), (2, 10_000)):
        monkeypatch.setattr(language_cpu, "_BLOCK", block)
        torch.set_num_threads(threads)
        found.append(language_cpu.compare(*batch))
    for one in found[1:]:
        assert torch.equal(one.reals_KN, found[0].reals_KN)
        assert torch.equal(one.marks_KN, found[0].marks_KN)


def test_takes_what_an_accumulator_on_the_cpu_is_given() -> None:
    reference_NV, candidate_NV = some_logits(9, 500, torch.bfloat16)
    accumulator = LanguageAccumulator("cpu")
    accumulator.update(reference_NV.requires_grad_(), candidate_NV, torch.arange(18)[::2])
    alone = LanguageAccumulator("cpu")
    alone._add(language_cpu.compare(reference_NV, candidate_NV, torch.arange(18)[::2]))
    assert accumulator.finish() == alone.finish()
