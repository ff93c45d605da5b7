"""The embedding of a text from the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sweeper.config import Pooling


def pool(hidden_ND: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """One vector a text, [S, D] float64, not normalised.

    Works on real tokens in canonical order (text by text, position by position), so the last token is the right one
    whatever the padding side. float64 holds every hidden state exactly; the mean is summed and divided in it.

    Args:
        hidden_ND: last hidden states of the tokens of all texts.
        lengths: tokens of each text, each at least 1; they add up to N.
        pooling: the last token, the mean of all tokens (special tokens included), or the first token (CLS).
    """
    texts = hidden_ND.double().split(list(lengths))
    match pooling:
        case Pooling.LAST_TOKEN:
            return torch.stack([hidden_TD[-1] for hidden_TD in texts])
        case Pooling.MEAN:
            return torch.stack([hidden_TD.mean(dim=0) for hidden_TD in texts])
        case Pooling.CLS:
            return torch.stack([hidden_TD[0] for hidden_TD in texts])
