"""The compiled loops against their twin in plain torch. (`test_pair.py` holds both against the oracle.)"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from sweeper.metrics.pair import PairAccumulator
from sweeper.metrics.precision import INT64_MIN
from tests.metrics.twin import a_pair, assert_same, by_the_twin, spoil

pytest.importorskip("numba")

from sweeper.metrics.cpu import pair as cpu
from sweeper.metrics.sums import Count, Pair, State

# One element, some rows a tile, rows longer than a tile of 4096 elements, and an odd number of both.
SHAPES = [(1, 1), (5, 24), (700, 64), (37, 257), (3, 9001)]


@pytest.fixture(params=[1, 2], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def by_the_loops(pairs: list[tuple[Tensor, Tensor]]) -> State:
    state = PairAccumulator(pairs[0][0].dtype, pairs[0][1].dtype, "cpu").state
    cpu.update([Pair(state, *pair) for pair in pairs])
    return state


@pytest.mark.parametrize("candidate", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("reference", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_the_twin(shape: tuple[int, int], reference: torch.dtype, candidate: torch.dtype) -> None:
    pair = a_pair(shape, reference, candidate)
    assert_same(by_the_loops([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equal_tensors(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pair = a_pair(shape, dtype, dtype)[0], a_pair(shape, dtype, dtype)[0]
    assert_same(by_the_loops([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_nan_and_inf_are_counted(shape: tuple[int, int], dtype: torch.dtype) -> None:
    pair = a_pair(shape, dtype, dtype)
    spoil(*pair)
    assert_same(by_the_loops([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("equal", [False, True])
def test_a_row_begins_with_a_tile_that_is_not_finite(equal: bool) -> None:
    reference_NF, candidate_NF = a_pair((2, 9001), torch.bfloat16, torch.float32)
    if equal:
        candidate_NF = reference_NF.float()
    reference_NF[0, :5000] = math.nan
    pair = reference_NF, candidate_NF
    assert_same(by_the_loops([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("scale", [0.0, 1e-44, 1e-38, 6e-8, 3e4, 1e38])
@pytest.mark.parametrize("candidate", cpu.DTYPES, ids=str)
@pytest.mark.parametrize("reference", cpu.DTYPES, ids=str)
def test_tiny_and_huge(reference: torch.dtype, candidate: torch.dtype, scale: float) -> None:
    pair = a_pair((5, 24), reference, candidate, scale)
    assert_same(by_the_loops([pair]), by_the_twin([pair]))


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
def test_signs_and_zeros_have_the_twins_ulp_distance(dtype: torch.dtype) -> None:
    largest, smallest = torch.finfo(dtype).max, torch.finfo(dtype).smallest_normal
    values = torch.tensor([0.0, -0.0, 1.0, -1.0, largest, -largest, smallest, -smallest], dtype=dtype)
    for reference, candidate in torch.cartesian_prod(torch.arange(8), torch.arange(8)).tolist():
        pair = values[reference].reshape(1, 1), values[candidate].reshape(1, 1)
        assert_same(by_the_loops([pair]), by_the_twin([pair]))


def test_every_float16_is_read_as_torch_reads_it() -> None:
    """The same numbers in float32 stand against it: nothing differs, whatever is finite."""
    every_NF = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.float16).view(-1, 64)
    state = by_the_loops([(every_NF, every_NF.float())])
    assert state.counts[[Count.UNEQUAL, Count.NONFINITE_MISMATCH, Count.MAX_ULP]].tolist() == [0, 0, INT64_MIN]
    assert_same(state, by_the_twin([(every_NF, every_NF.float())]))


@pytest.mark.parametrize("coarser", [torch.float16, torch.bfloat16], ids=str)
def test_rounds_to_the_coarser_format_as_torch_does(coarser: torch.dtype) -> None:
    """A column of zeros beside any float32: the distance is that of the number alone."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (3000,), generator=generator).to(torch.int32)
    edges = torch.tensor([65519.99, 65520.0, 2.0**-14, 2.0**-24, 2.0**-25, 2.0**-25 * 1.001, 3.38e38, 3.4e38, 1e-45])
    values = torch.cat([bits.view(torch.float32), edges, torch.randn(3000, generator=generator) * 1e-5])
    for value in values[values.isfinite()]:
        pair = torch.zeros(1, 1, dtype=coarser), value.reshape(1, 1)
        accumulator = by_the_loops([pair])
        assert accumulator.counts[Count.MAX_ULP] == by_the_twin([pair]).counts[Count.MAX_ULP], value


@pytest.mark.parametrize("dtype", cpu.DTYPES, ids=str)
def test_views(dtype: torch.dtype) -> None:
    """Rows apart, columns apart, transposed, and starting at an odd address."""
    reference_NF, candidate_NF = a_pair((37, 48), dtype, dtype)
    views: list[tuple[Tensor, Tensor]] = [
        (reference_NF[:, 8:24], candidate_NF[:, 8:24]),
        (reference_NF.view(-1)[1:-47].view(36, 48), candidate_NF.view(-1)[3:-45].view(36, 48)),
        (reference_NF[::2, ::3], candidate_NF[::2, ::3]),
        (reference_NF.T, candidate_NF.T.contiguous()),
        (reference_NF[:1].expand(5, 48), candidate_NF[:5]),
        (reference_NF.clone().requires_grad_(), candidate_NF),
    ]
    for pair in views:
        assert_same(by_the_loops([pair]), by_the_twin([(pair[0].detach(), pair[1])]))


def test_the_first_of_equal_worst_elements_counts() -> None:
    reference_NF = torch.zeros(40, 72, dtype=torch.bfloat16)
    candidate_NF = reference_NF.clone()
    candidate_NF[7, 65] = candidate_NF[7, 66] = candidate_NF[8, 0] = candidate_NF[39, 1] = 1.0
    state = by_the_loops([(reference_NF, candidate_NF), (reference_NF, candidate_NF)])
    assert state.counts[[Count.WORST_TOKEN, Count.WORST_FEATURE]].tolist() == [7, 65]


def test_the_worst_element_is_found_where_float32_sees_a_tie() -> None:
    """1 - 2**-40 and 1 round to one float32; only float64 tells which of two tiles is worse."""
    reference_NF = torch.zeros(1, 9000)
    reference_NF[0, 10], reference_NF[0, 5000] = 2.0**-40, 0.0
    candidate_NF = reference_NF.clone()
    candidate_NF[0, 10] = candidate_NF[0, 5000] = 1.0
    state = by_the_loops([(reference_NF, candidate_NF)])
    assert state.counts[Count.WORST_FEATURE] == 5000
    assert_same(state, by_the_twin([(reference_NF, candidate_NF)]))


def test_batches_are_merged_in_order() -> None:
    pairs = [a_pair(shape, torch.bfloat16, torch.float32) for shape in [(3, 24), (5, 24), (4, 24)]]
    assert_same(by_the_loops(pairs), by_the_twin(pairs))


def test_blocks_and_threads_give_the_twins_figures(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", 2000)
    pair = a_pair((700, 64), torch.bfloat16, torch.bfloat16)
    assert_same(by_the_loops([pair]), by_the_twin([pair]))


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_BLOCK", 2000)
    pair = a_pair((700, 64), torch.float32, torch.bfloat16)
    before = torch.get_num_threads()
    states = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        states.append(by_the_loops([pair]))
    torch.set_num_threads(before)
    for state in states[1:]:
        assert torch.equal(state.reals, states[0].reals)
        assert torch.equal(state.counts, states[0].counts)


def test_many_pairs_at_once_are_the_same_bits_as_one() -> None:
    pairs = [a_pair((rows, 24), torch.bfloat16, torch.bfloat16) for rows in (1, 5, 37)]
    pairs.append(pairs[0])  # the same memory, another state
    together = [PairAccumulator(torch.bfloat16, torch.bfloat16, "cpu").state for _ in pairs]
    for _ in range(2):
        cpu.update([Pair(state, *pair) for state, pair in zip(together, pairs, strict=True)])
    for state, pair in zip(together, pairs, strict=True):
        alone = by_the_loops([pair, pair])
        assert torch.equal(alone.reals, state.reals)
        assert torch.equal(alone.counts, state.counts)


def test_runs_where_no_folder_can_be_written() -> None:
    """numba then knows no place for its code, which must not be an error."""
    code = "from sweeper.metrics.cpu import kernels as k; print(type(k.join._cache).__name__)"
    environment = {**os.environ, "NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "NullCache"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_process_has_threads_of_its_own() -> None:
    code = """
import os, signal, torch
from sweeper.metrics.pair import measure
torch.set_num_threads(2)
pair = torch.randn(2, 600, 4096).unbind()
before = measure(*pair)
if (child := os.fork()) == 0:
    signal.alarm(20)
    os._exit(measure(*pair) != before)
print(os.waitpid(child, 0)[1])
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "0"
