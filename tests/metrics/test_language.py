"""`LanguageFigures` against the definitions, an element at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sweeper.metrics import language
from sweeper.metrics.language import LanguageAccumulator
from sweeper.results import LanguageFigures

NAN = math.nan
_logit = st.one_of(st.floats(-30, 30, width=16), st.sampled_from([0.0, 1.0, 1e4, -1e4]))
_special = st.one_of(_logit, st.sampled_from([math.nan, math.inf, -math.inf]))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    tokens, vocabulary = draw(st.integers(0, 5)), draw(st.integers(1, 6))
    size = tokens * vocabulary
    logits = []
    for _ in range(2):
        dtype = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
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


@settings(deadline=None, max_examples=150)
@given(batches(), st.data())
def test_equals_the_definitions_however_it_is_batched(
    batch: tuple[Tensor, Tensor, Tensor], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(batch[0])), max_size=3)))
    accumulator = LanguageAccumulator("cpu")
    for start, end in zip([0, *cuts], [*cuts, len(batch[0])], strict=True):
        accumulator.update(*(part[start:end] for part in batch))
    assert_same(accumulator.finish(), expected(*batch))


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "_CHUNK", {"cpu": 50})
    generator = torch.Generator().manual_seed(0)
    reference_NV = torch.randn(11, 20, generator=generator)
    candidate_NV = (reference_NV + 0.1 * torch.randn(11, 20, generator=generator)).bfloat16()
    next_token_N = torch.arange(-1, 10)
    accumulator = LanguageAccumulator("cpu")
    accumulator.update(reference_NV, candidate_NV, next_token_N)
    assert_same(accumulator.finish(), expected(reference_NV, candidate_NV, next_token_N))


def test_identical_logits_have_no_divergence() -> None:
    logits = torch.randn(4, 300, generator=torch.Generator().manual_seed(0)).half()
    accumulator = LanguageAccumulator("cpu")
    accumulator.update(logits, logits.clone(), torch.tensor([1, 2, 3, -1]))
    figures = accumulator.finish()
    assert (figures.kl_mean, figures.kl_max, figures.top1_agreement) == (0.0, 0.0, 1.0)
    assert (figures.log_likelihood_change_mean, figures.log_likelihood_change_max_abs) == (0.0, 0.0)


def test_ties_go_to_the_lowest_id() -> None:
    accumulator = LanguageAccumulator("cpu")
    accumulator.update(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 1.0]]), torch.tensor([-1]))
    assert accumulator.finish().top1_agreement == 0.0
