"""`LanguageFigures` against the definitions, an element at a time: of plain torch, of numba's loops on the CPU, and of
Triton's kernel where it can run (on a GPU, or in the interpreter: TRITON_INTERPRET=1)."""

from __future__ import annotations

import importlib
import importlib.util
import math
import os
from collections.abc import Callable
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweeper.metrics import language
from sweeper.metrics.language import LanguageAccumulator, Tokens
from sweeper.records.cell import LanguageFigures

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HAS_KERNEL = bool(importlib.util.find_spec("triton")) and (
    DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
)
EXAMPLES = 30 if HAS_KERNEL and DEVICE == "cpu" else 150  # the interpreter is slow
Compare = Callable[[Tensor, Tensor, Tensor], Tokens]
Batch = tuple[Tensor, Tensor, Tensor]
TORCH = pytest.param(("sweeper.metrics.language", DEVICE), id="torch")
LOOPS = pytest.param(
    ("sweeper.metrics.cpu.language", "cpu"),
    marks=pytest.mark.skipif(not importlib.util.find_spec("numba"), reason="no numba"),
    id="loops",
)
KERNEL = pytest.param(
    ("sweeper.metrics.cuda.language", DEVICE),
    marks=pytest.mark.skipif(not HAS_KERNEL, reason="no GPU, no interpreter"),
    id="kernel",
)


@pytest.fixture(params=[TORCH, LOOPS, KERNEL], scope="module")
def compare(request: pytest.FixtureRequest) -> Compare:
    module, device = request.param
    of_device: Compare = importlib.import_module(module).compare
    return lambda *batch: of_device(*(part.to(device) for part in batch))


def figures(compare: Compare, *batches: Batch) -> LanguageFigures:
    tokens = [compare(*batch) for batch in batches if len(batch[0])]
    accumulator = LanguageAccumulator(tokens[0].reals_KN.device if tokens else DEVICE)
    for one in tokens:
        accumulator._add(one)
    return accumulator.finish()


NAN = math.nan
_logit = st.one_of(st.floats(-30, 30, width=16), st.sampled_from([0.0, 1.0, 1e4, -1e4]))
_special = st.one_of(_logit, st.sampled_from([math.nan, math.inf, -math.inf]))


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    tokens, vocabulary = draw(st.integers(0, 5)), draw(st.integers(1, 6))
    size = tokens * vocabulary
    logits = []
    for _ in range(2):
        dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32]))
        element = draw(st.sampled_from([_logit, _special]))
        values = torch.tensor(draw(st.lists(element, min_size=size, max_size=size)), dtype=torch.float64)
        logits.append(values.to(dtype).reshape(tokens, vocabulary))
    following = draw(st.lists(st.integers(-1, vocabulary - 1), min_size=tokens, max_size=tokens))
    return logits[0], logits[1], torch.tensor(following, dtype=torch.int64)


def log_probabilities(logits: list[float]) -> list[float]:
    largest = max(logits)
    log_sum = largest + math.log(math.fsum(math.exp(logit - largest) for logit in logits))
    return [logit - log_sum for logit in logits]


def expected(reference_NV: Tensor, candidate_NV: Tensor, next_token_N: Tensor) -> LanguageFigures:
    divergences, same, changes, nonfinite = [], [], [], 0
    rows = zip(reference_NV.double().tolist(), candidate_NV.double().tolist(), next_token_N.tolist(), strict=True)
    for references, candidates, following in rows:
        if not all(map(math.isfinite, references + candidates)):
            nonfinite += 1
            continue
        p, q = log_probabilities(references), log_probabilities(candidates)
        divergences.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True)))
        same.append(references.index(max(references)) == candidates.index(max(candidates)))
        if following >= 0:
            changes.append(q[following] - p[following])
    return LanguageFigures(
        kl_mean=math.fsum(divergences) / len(divergences) if divergences else NAN,
        kl_max=max(divergences) if divergences else NAN,
        top1_agreement=sum(same) / len(same) if same else NAN,
        log_likelihood_change_mean=math.fsum(changes) / len(changes) if changes else NAN,
        log_likelihood_change_max_abs=max(map(abs, changes)) if changes else NAN,
        nonfinite_tokens=nonfinite,
    )


def assert_same(ours: LanguageFigures, theirs: LanguageFigures) -> None:
    assert ours.model_dump() == pytest.approx(theirs.model_dump(), rel=1e-11, abs=1e-11, nan_ok=True)


@settings(deadline=None, max_examples=EXAMPLES)
@given(batch=batches(), data=st.data())
def test_equals_the_definitions_however_it_is_batched(compare: Compare, batch: Batch, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch[0])), max_size=3)))
    bounds = zip([0, *cuts], [*cuts, len(batch[0])], strict=True)
    parts = [(batch[0][start:end], batch[1][start:end], batch[2][start:end]) for start, end in bounds]
    assert_same(figures(compare, *parts), expected(*batch))


def a_batch(tokens: int, vocabulary: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    reference_NV = 4 * torch.randn(tokens, vocabulary, generator=generator)
    noise_NV = torch.randn(tokens, vocabulary, generator=generator)
    return reference_NV, (reference_NV + 0.1 * noise_NV).bfloat16(), torch.arange(-1, tokens - 1) % vocabulary


@pytest.mark.parametrize("vocabulary", [1, 50, 1024, 5000])
def test_vocabularies_of_one_turn_and_of_many(compare: Compare, vocabulary: int) -> None:
    batch = a_batch(3, vocabulary)
    assert_same(figures(compare, batch), expected(*batch))


def test_views(compare: Compare) -> None:
    """Rows apart, columns apart, transposed, one row several times."""
    reference_NV, candidate_NV, next_token_N = a_batch(8, 48)
    for view in (
        (reference_NV[1:, 1:17], candidate_NV[1:, 3:19], next_token_N[1:] % 16),
        (reference_NV[::2, ::3], candidate_NV[::2, ::3], next_token_N[::2] % 16),
        (reference_NV.T, candidate_NV.T.contiguous(), torch.arange(48) % 8),
        (reference_NV[:1].expand(8, 48), candidate_NV, next_token_N),
    ):
        assert_same(figures(compare, view), expected(*view))


@pytest.mark.parametrize("compare", [LOOPS, KERNEL], indirect=True)
def test_a_token_is_the_same_bits_in_any_batch(compare: Compare) -> None:
    batch = a_batch(5, 3000)
    together, again = compare(*batch), compare(*batch)
    alone = [compare(*(part[token : token + 1] for part in batch)) for token in range(5)]
    for number, whole in enumerate(together):
        assert torch.equal(whole, again[number])
        assert torch.equal(whole, torch.cat([one[number] for one in alone], dim=1))


def divergence(reference: Tensor, candidate: Tensor) -> Decimal:
    """KL of one token, in 60 digits."""
    with localcontext(prec=60):
        sides = [[Decimal(logit) for logit in side.tolist()] for side in (reference, candidate)]
        totals = [sum((logit.exp() for logit in side), Decimal(0)) for side in sides]
        log_ratio = (totals[1] / totals[0]).ln()
        return sum(((r.exp() / totals[0]) * (r - c + log_ratio) for r, c in zip(*sides, strict=True)), Decimal(0))


@pytest.mark.parametrize("scale", [0.01, 1.0, 10.0])
@pytest.mark.parametrize("change", [1e-7, 1e-6, 1e-3, 0.1, 1.0, 100.0])
def test_divergence_keeps_its_digits_however_small_it_is(compare: Compare, scale: float, change: float) -> None:
    generator = torch.Generator().manual_seed(1)
    reference_NV = scale * torch.randn(1, 60, generator=generator)
    candidate_NV = reference_NV * (1 + change * torch.randn(1, 60, generator=generator))
    truth = divergence(reference_NV[0], candidate_NV[0])
    found = Decimal(figures(compare, (reference_NV, candidate_NV, torch.tensor([-1]))).kl_max)
    # Of a logit's change u the definition loses 2**-53 / u, and here that is at least 1e-9.
    assert abs(found / truth - 1) < 1e-6


def test_a_common_offset_is_no_divergence(compare: Compare) -> None:
    reference_NV = torch.arange(50.0)[None] / 8
    batch = (reference_NV, reference_NV + 1024, torch.tensor([7]))
    ours = figures(compare, batch)
    assert ours.kl_max == pytest.approx(0, abs=1e-24)
    assert ours.log_likelihood_change_max_abs == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_one_logit_that_is_not_finite_leaves_its_token_out(compare: Compare, side: int, value: float) -> None:
    batch = a_batch(4, 2500)
    batch[side][2, 2400] = value
    ours = figures(compare, batch)
    assert ours.nonfinite_tokens == 1
    assert_same(ours, expected(*batch))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_CHUNK", {"cpu": 50})
    reference_NV, candidate_NV, next_token_N = a_batch(11, 20)
    batch = reference_NV.double(), candidate_NV, next_token_N  # a dtype that plain torch serves
    accumulator = LanguageAccumulator("cpu")
    accumulator.update(*batch)
    assert_same(accumulator.finish(), expected(*batch))


def test_float64_is_compared_as_it_is() -> None:
    reference_NV = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    candidate_NV = reference_NV + torch.tensor([[1e-9, 0.0, 0.0]])
    batch = (reference_NV, candidate_NV, torch.tensor([0]))
    accumulator = LanguageAccumulator(DEVICE)
    accumulator.update(*(part.to(DEVICE) for part in batch))
    assert accumulator.finish().kl_max == pytest.approx(float(divergence(reference_NV[0], candidate_NV[0])), rel=1e-6)


def test_identical_logits_have_no_divergence(compare: Compare) -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).half()
    ours = figures(compare, (logits, logits.clone(), torch.tensor([1, 2, 3, -1])))
    assert (ours.kl_mean, ours.kl_max, ours.top1_agreement) == (0.0, 0.0, 1.0)
    assert (ours.log_likelihood_change_mean, ours.log_likelihood_change_max_abs) == (0.0, 0.0)


def test_ties_go_to_the_lowest_id(compare: Compare) -> None:
    reference_NV = torch.tensor([[1.0, 1.0, 0.0]]).repeat(1, 900)
    candidate_NV = torch.tensor([[0.0, 1.0, 1.0]]).repeat(1, 900)
    no_token = torch.tensor([-1])
    assert figures(compare, (reference_NV, candidate_NV, no_token)).top1_agreement == 0.0
    reference_NV[:, 0] = 0.0
    assert figures(compare, (reference_NV, candidate_NV, no_token)).top1_agreement == 1.0


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    logits_NV = torch.zeros(3, 5)
    with pytest.raises(ValueError, match=r"cannot compare \(3, 5\) and \(3, 4\) and \(3,\)"):
        LanguageAccumulator("cpu").update(logits_NV, logits_NV[:, :4], torch.zeros(3, dtype=torch.int64))


@pytest.mark.skipif(DEVICE == "cpu" or not HAS_KERNEL, reason="needs a GPU and Triton")
def test_a_captured_batch_adds_the_bits_of_the_kernel() -> None:
    inputs = [part.to(DEVICE) for part in a_batch(37, 1500)]
    captured = LanguageAccumulator(DEVICE)
    captured.update(*inputs)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.update(*inputs)
    batches = [(inputs[0] * scale, inputs[1], inputs[2]) for scale in (1.0, 0.5, 3.0)]
    for batch in batches[1:]:
        inputs[0].copy_(batch[0])
        graph.replay()
    kernel: Compare = importlib.import_module("sweeper.metrics.cuda.language").compare
    assert captured.finish() == figures(kernel, *batches)
