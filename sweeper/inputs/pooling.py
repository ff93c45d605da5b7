"""The embedding of a text from the hidden states of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sweeper.config import Pooling
from sweeper.inputs.layout import Tokens, to_tokens


def embeddings(hidden_BTD: Tensor, tokens: Tokens, mask_BT: Tensor | None, pooling: Pooling) -> Tensor:
    """One vector a text of a call, [S, D] float64, not normalised.

    Args:
        hidden_BTD: last hidden states, pads included.
        mask_BT: the `attention_mask` that the model was called with, if any.
        pooling: see `pool`, and `pool_by_count`, which changes nothing where there is no mask.
    """
    if pooling is Pooling.LAST_TOKEN_BY_COUNT and mask_BT is not None:
        return pool_by_count(hidden_BTD, mask_BT)
    if tokens.whole:
        return pool_places(hidden_BTD, pooling)
    hidden_ND = to_tokens(hidden_BTD, tokens)
    assert hidden_ND is not None, f"hidden states of shape {tuple(hidden_BTD.shape)} have no token dimension"
    return pool(hidden_ND, tokens.lengths, pooling)


def pool_by_count(hidden_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """`hidden[row, mask.sum() - 1]` of a padded block, [B, D] float64: what the answer in report 2 pools with.

    The last token under right padding. Under left padding only the longest text's: another row of L tokens in T columns
    gives column L - 1, which is a pad where 2 L <= T, else one of its earlier tokens.
    """
    row_B = torch.arange(len(hidden_BTD), device=hidden_BTD.device)
    return hidden_BTD[row_B, mask_BT.sum(dim=1) - 1].double()


def pool(hidden_ND: Tensor, lengths: Sequence[int], pooling: Pooling) -> Tensor:
    """One vector a text, [S, D] float64, not normalised.

    Works on real tokens in canonical order (text by text, position by position), so the last token is the right one
    whatever the padding side. float64 holds every hidden state exactly; the mean is summed and divided in it.

    Args:
        hidden_ND: last hidden states of the tokens of all texts.
        lengths: tokens of each text, each at least 1; they add up to N.
        pooling: the last token, the mean or the maximum of all tokens (special tokens included), or the first (CLS).
            `last_token_by_count` is the last token here: there are no pads to count over.
    """
    texts = hidden_ND.double().split(list(lengths))
    match pooling:
        case Pooling.LAST_TOKEN | Pooling.LAST_TOKEN_BY_COUNT:
            return torch.stack([hidden_TD[-1] for hidden_TD in texts])
        case Pooling.MEAN:
            return torch.stack([hidden_TD.mean(dim=0) for hidden_TD in texts])
        case Pooling.MAX:
            return torch.stack([hidden_TD.amax(dim=0) for hidden_TD in texts])
        case Pooling.CLS:
            return torch.stack([hidden_TD[0] for hidden_TD in texts])
        case Pooling.AUTO:
            raise AssertionError("planning replaces auto by what the checkpoint says")


def pool_places(hidden: Tensor, pooling: Pooling) -> Tensor:
    """One vector an image or sound, [B, D] float64: over the places [B, T, D], or the pixels [B, D, H, W], of each."""
    hidden_BTD = hidden.flatten(2).mT if hidden.dim() == 4 else hidden.reshape(len(hidden), -1, hidden.shape[-1])
    B, T, D = hidden_BTD.shape
    return pool(hidden_BTD.reshape(B * T, D), [T] * B, pooling)
