"""How the predictions of two causal language models differ, from their logits.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from sweeper.metrics.fast import fast_module
from sweeper.records.cell import LanguageFigures

# Logits in a chunk of rows, which takes about five float64 tensors of this size: 20 MiB, what a CPU's caches hold, or
# 640 MiB, so that a GPU has few launches.
_CHUNK = {"cpu": 2**19, "cuda": 2**24}
# A log-probability below this is as good as this, and leaves every ratio of probabilities in float64's range.
_LEAST_LOG = -600.0


class _Real(IntEnum):
    KL_SUM = 0
    CHANGE_SUM = 1
    KL_MAX = 2
    CHANGE_MAX_ABS = 3


class _Count(IntEnum):
    FINITE = 0  # tokens whose logits are all finite on both sides
    NONFINITE = 1
    TOP1_SAME = 2
    FOLLOWED = 3  # of the finite ones, those that another token follows


class Tokens(NamedTuple):
    """What is known of each token.

    Attributes:
        reals_KN: float64; KL and the change of log-likelihood, 0 where there is none.
        marks_KN: bool; what `_Count` counts.
    """

    reals_KN: Tensor
    marks_KN: Tensor


class LanguageAccumulator:
    """Compares logits batch by batch, in float64.

    Tokens with a logit that is NaN or infinite on either side have no figures: they are counted as `nonfinite_tokens`.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._reals = torch.zeros(len(_Real), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(_Count), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, reference_logits_NV: Tensor, candidate_logits_NV: Tensor, next_token_N: Tensor) -> None:
        """Adds N tokens. Does not synchronise with the device; a CUDA graph may hold it.

        Args:
            reference_logits_NV, candidate_logits_NV: any floating dtypes, on one device; need not be contiguous.
            next_token_N: int64; the token that follows in the text, -1 after the last one.

        Raises:
            ValueError: the shapes do not belong together.
        """
        N, V = reference_logits_NV.shape
        parts = reference_logits_NV, candidate_logits_NV, next_token_N
        if candidate_logits_NV.shape != (N, V) or next_token_N.shape != (N,):
            shapes = " and ".join(str(tuple(part.shape)) for part in parts)
            raise ValueError(f"cannot compare {shapes}: give logits of tokens x vocabulary, twice, and a token each")
        if not N:
            return
        fused = fast_module(reference_logits_NV.device.type, "language")
        if fused is not None and {reference_logits_NV.dtype, candidate_logits_NV.dtype} <= set(fused.DTYPES):
            self._add(fused.compare(*parts))
            return
        rows = max(1, _CHUNK[reference_logits_NV.device.type] // V)
        for chunk in zip(*(part.split(rows) for part in parts), strict=True):
            self._add(compare(*chunk))

    def _add(self, tokens: Tokens) -> None:
        """Adds in place, so that a graph that is replayed adds again."""
        sums, maxima = self._reals[: _Real.KL_MAX], self._reals[_Real.KL_MAX :]
        sums += tokens.reals_KN.sum(1)
        torch.maximum(maxima, tokens.reals_KN.abs().amax(1), out=maxima)
        self._counts += tokens.marks_KN.sum(1)

    def finish(self) -> LanguageFigures:
        """The figures, with a single transfer to the host; NaN where there is no token to speak of."""
        host = torch.cat([self._reals.view(torch.int64), self._counts]).cpu()
        reals = host[: len(_Real)].view(torch.float64).tolist()
        counts = host[len(_Real) :].tolist()
        finite, followed = counts[_Count.FINITE], counts[_Count.FOLLOWED]
        nan = float("nan")
        return LanguageFigures(
            kl_mean=reals[_Real.KL_SUM] / finite if finite else nan,
            kl_max=reals[_Real.KL_MAX] if finite else nan,
            top1_agreement=counts[_Count.TOP1_SAME] / finite if finite else nan,
            log_likelihood_change_mean=reals[_Real.CHANGE_SUM] / followed if followed else nan,
            log_likelihood_change_max_abs=reals[_Real.CHANGE_MAX_ABS] if followed else nan,
            nonfinite_tokens=counts[_Count.NONFINITE],
        )


def compare(reference_NV: Tensor, candidate_NV: Tensor, next_token_N: Tensor) -> Tokens:
    """Compares at least one token, in plain torch: the definition.

    With u = ln q - ln p, KL is the sum of p (exp(u) - 1 - u), as the sums of p and of q are both 1. No term is
    negative, so that nothing cancels: where logits differ by 1e-6, which is a KL of 1e-12, nine digits are left.
    """
    reference_top_N, reference_finite_N = _top(reference_NV)
    candidate_top_N, candidate_finite_N = _top(candidate_NV)
    finite_N = reference_finite_N & candidate_finite_N
    followed_N = finite_N & (next_token_N >= 0)
    reference_NV = reference_NV.double().log_softmax(1)
    candidate_NV = candidate_NV.double().log_softmax(1)
    next_N1 = next_token_N.clamp_min(0)[:, None]
    change_N = (candidate_NV.gather(1, next_N1) - reference_NV.gather(1, next_N1))[:, 0]
    change_NV = candidate_NV.sub_(reference_NV.clamp_min_(_LEAST_LOG))
    kl_N = change_NV.expm1().sub_(change_NV).mul_(reference_NV.exp_()).sum(1)
    return Tokens(
        torch.stack([kl_N.clamp_min(0).masked_fill(~finite_N, 0), change_N.masked_fill(~followed_N, 0)]),
        torch.stack([finite_N, ~finite_N, finite_N & (reference_top_N == candidate_top_N), followed_N]),
    )


def _top(logits_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Finds each token's first largest logit, and whether all are finite: several times faster than isfinite."""
    largest_N, top_N = logits_NV.max(1)
    return top_N, largest_N.isfinite() & logits_NV.amin(1).isfinite()
