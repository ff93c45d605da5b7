"""Log-probabilities of the tokens that a text has, and how two programs' differ, as reinforcement learning asks.

Shapes: N tokens of all texts one after another, V vocabulary. A text's first token has no log-probability: NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 256  # of logits in float64 at once
RATIO_BOUNDS = (0.9, 1.1)
"""A token whose ratio of probabilities lies outside is counted: what clipping of importance weights would touch."""


def log_probabilities(logits_NV: Tensor, token_ids: Sequence[Sequence[int]]) -> Tensor:
    """The log-probability of each token given those before it, [N] float64."""
    id_N = torch.tensor(list(itertools.chain.from_iterable(token_ids)), device=logits_NV.device)
    next_N = id_N.roll(-1)  # behind the last token of a text stands one that nobody asks for
    pieces = [
        piece_NV.double().log_softmax(1).gather(1, next_N1)[:, 0]
        for piece_NV, next_N1 in zip(logits_NV.split(_ROWS), next_N[:, None].split(_ROWS), strict=True)
    ]
    found_N = torch.cat(pieces).roll(1)
    found_N[first_tokens(token_ids).to(found_N.device)] = math.nan
    return found_N


def first_tokens(token_ids: Sequence[Sequence[int]]) -> Tensor:
    """The row of each text's first token, [S]."""
    lengths = [len(ids) for ids in token_ids]
    return torch.tensor(list(itertools.accumulate(lengths[:-1], initial=0)))


@dataclass(frozen=True, kw_only=True)
class Ratios:
    """How far the log-probabilities of the same tokens are apart.

    Attributes:
        tokens: that both sides gave a finite number for.
        mean_abs: mean |Δ log p|, in nats. ratio: exp of it.
        outside: share of tokens whose ratio of probabilities lies outside `RATIO_BOUNDS`.
        first: mean |Δ log p| of the first token of each text that has one; NaN where none does.
        later: of all others.
        one_sided: tokens that only one side gave a finite number for.
    """

    tokens: int
    mean_abs: float
    ratio: float
    outside: float
    first: float
    later: float
    one_sided: int


def ratios(recorded_N: Tensor, own_N: Tensor, token_ids: Sequence[Sequence[int]]) -> Ratios:
    """Compares the log-probabilities that were recorded with our own."""
    change_N = recorded_N.double().cpu() - own_N.double().cpu()
    finite_N = change_N.isfinite()
    first_N = torch.zeros_like(finite_N)
    starts = first_tokens(token_ids)
    first_N[[start + 1 for start, ids in zip(starts.tolist(), token_ids, strict=True) if len(ids) > 1]] = True
    mean_abs = _mean(change_N[finite_N].abs())
    ratio_N = change_N[finite_N].exp()
    low, high = RATIO_BOUNDS
    one_sided = int((recorded_N.cpu().isfinite() != own_N.cpu().isfinite()).sum())
    return Ratios(
        tokens=int(finite_N.sum()),
        mean_abs=mean_abs,
        ratio=math.exp(min(mean_abs, 700.0)),
        outside=_mean(((ratio_N < low) | (ratio_N > high)).double()),
        first=_mean(change_N[finite_N & first_N].abs()),
        later=_mean(change_N[finite_N & ~first_N].abs()),
        one_sided=one_sided,
    )


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
