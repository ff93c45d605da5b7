"""How the predictions of two causal language models differ, from their logits.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor

from sweeper.results import LanguageFigures

# Logits in a chunk of rows, which takes about five float64 tensors of this size: 20 MiB, what a CPU's caches hold, or
# 640 MiB, so that a GPU has few launches.
_CHUNK = {"cpu": 2**19, "cuda": 2**24}


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


class LanguageAccumulator:
    """Compares logits batch by batch, in float64.

    Tokens with a logit that is NaN or infinite on either side have no figures: they are counted as `nonfinite_tokens`.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._reals = torch.zeros(len(_Real), dtype=torch.float64, device=device)
        self._counts = torch.zeros(len(_Count), dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, reference_logits_NV: Tensor, candidate_logits_NV: Tensor, next_token_N: Tensor) -> None:
        """Adds N tokens. Does not synchronise with the device.

        Args:
            reference_logits_NV, candidate_logits_NV: any floating dtypes, on one device.
            next_token_N: int64; the token that follows in the text, -1 after the last one.
        """
        rows = max(1, _CHUNK[reference_logits_NV.device.type] // max(1, reference_logits_NV.shape[1]))
        chunks = zip(
            reference_logits_NV.split(rows), candidate_logits_NV.split(rows), next_token_N.split(rows), strict=True
        )
        for reference_NV, candidate_NV, next_N in chunks:
            if len(next_N):
                self._add(reference_NV, candidate_NV, next_N)

    def _add(self, reference_NV: Tensor, candidate_NV: Tensor, next_N: Tensor) -> None:
        finite_N = reference_NV.isfinite().all(1) & candidate_NV.isfinite().all(1)
        followed_N = finite_N & (next_N >= 0)
        same_N = finite_N & (reference_NV.argmax(1) == candidate_NV.argmax(1))
        reference_NV = reference_NV.double().log_softmax(1)
        change_NV = candidate_NV.double().log_softmax(1).sub_(reference_NV)
        change_N = change_NV.gather(1, next_N.clamp_min(0)[:, None])[:, 0].masked_fill(~followed_N, 0)
        # KL is never negative; its rounding error is.
        kl_N = reference_NV.exp_().mul_(change_NV).sum(1).neg().clamp_min(0).masked_fill(~finite_N, 0)
        largest = torch.stack([kl_N.amax(), change_N.abs().amax()])
        sums = torch.stack([kl_N.sum(), change_N.sum()])
        self._reals = torch.cat(
            [self._reals[: _Real.KL_MAX] + sums, torch.maximum(self._reals[_Real.KL_MAX :], largest)]
        )
        self._counts = self._counts + torch.stack([mask.sum() for mask in (finite_N, ~finite_N, same_N, followed_N)])

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
