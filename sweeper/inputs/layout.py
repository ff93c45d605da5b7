"""Texts become model calls (padded, packed or one by one), and what the model gives becomes tokens again.

The *canonical order* of tokens is text by text, position by position. Every layout maps back to it, so two layouts can
be compared row by row, and pads are gone before anything is measured.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sweeper.config import Layout, Positions
from sweeper.devices import to_device


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Where the N real tokens of a block [B, T] are, in canonical order.

    Attributes:
        shape: B and T.
        flat_N: each token's place in [B * T], row after row; on the device.
        lengths: tokens of each text.
        encoder: those that an encoder reads, where these are a decoder's; None: there is one kind of tokens.
        beside: the call has arguments of another kind too (pictures beside a text), to which these do not belong.
        frames: the frames that a model makes of these samples of sound, by their number; None: it does not say.
        whole: T is 1, and its one row is all that the model gives of an image or sound, whose places nobody counted.
    """

    shape: tuple[int, int]
    flat_N: Tensor
    lengths: tuple[int, ...]
    encoder: Tokens | None = None
    beside: bool = False
    frames: Callable[[int], Tokens | None] | None = None
    whole: bool = False

    @property
    def one_kind(self) -> bool:
        """Whether what has these B and T belongs to these tokens: nothing else was given."""
        return self.encoder is None and not self.beside

    @property
    def all_real(self) -> bool:
        """Whether there are no pads."""
        return len(self.flat_N) == math.prod(self.shape)

    def rows_only(self) -> Tokens:
        """A map of the batch's rows, without tokens."""
        B = self.shape[0]
        return Tokens(shape=(B, 1), flat_N=torch.arange(B, device=self.flat_N.device), lengths=(1,) * B)

    def last(self, columns: int) -> Tokens:
        """Those in the last columns of each row."""
        B, T = self.shape
        kept_N = self.column_N >= T - columns
        row_N, column_N = self.row_N[kept_N], self.column_N[kept_N] - (T - columns)
        lengths = torch.bincount(row_N, minlength=B).tolist()
        return Tokens(shape=(B, columns), flat_N=row_N * columns + column_N, lengths=tuple(lengths))

    @functools.cached_property
    def row_N(self) -> Tensor:
        return self.flat_N // self.shape[1]

    @functools.cached_property
    def column_N(self) -> Tensor:
        return self.flat_N % self.shape[1]


@dataclass(frozen=True, kw_only=True)
class Step(Tokens):
    """Some columns of a block, which the model reads behind those before them.

    Attributes:
        start, end: the columns.
        place_N: of each token, among those of the whole block.
    """

    start: int
    end: int
    place_N: Tensor


def step_bounds(tokens: Tokens, columns: int) -> tuple[int, ...]:
    """The columns where steps of so many columns begin, and the end. The first step is longer where a row begins with
    more pads: as when a prompt is read before the rest, no step ends before every row has a token, as flash attention
    needs it.
    """
    B, T = tokens.shape
    row_N, column_N = (numbers.cpu() for numbers in (tokens.row_N, tokens.column_N))
    begins_B = torch.full((B,), T).scatter_reduce(0, row_N, column_N, "amin")
    has_tokens_B = torch.bincount(row_N, minlength=B) > 0
    first = max(columns, int(begins_B[has_tokens_B].max()) + 1)
    return (0, *range(first, T, columns), T) if first < T else (0, T)


def in_steps(tokens: Tokens, bounds: Sequence[int]) -> list[Step]:
    """The steps of a block, between these columns."""
    B = tokens.shape[0]
    text_N = torch.repeat_interleave(torch.tensor(tokens.lengths)).to(tokens.flat_N.device)
    steps = []
    for start, end in itertools.pairwise(bounds):
        place_N = ((tokens.column_N >= start) & (tokens.column_N < end)).nonzero()[:, 0]
        flat_N = tokens.row_N[place_N] * (end - start) + tokens.column_N[place_N] - start
        lengths = tuple(length for length in torch.bincount(text_N[place_N]).tolist() if length)
        steps.append(
            Step(shape=(B, end - start), flat_N=flat_N, lengths=lengths, start=start, end=end, place_N=place_N)
        )
    return steps


@dataclass(frozen=True, kw_only=True)
class Forward(Tokens):
    """One call of the model.

    Attributes:
        inputs: keyword arguments of the call, each [B, T] int64 on the device: `input_ids`; `attention_mask` in padded
            layouts; `position_ids` where they are explicit. Or the one that carries images or sounds, [B, ...].
        texts: index of each text of this call into all inputs.
    """

    inputs: dict[str, Tensor]
    texts: tuple[int, ...]


def lay_out(
    token_ids: Sequence[Sequence[int]],
    texts: Sequence[int],
    *,
    layout: Layout,
    positions: Positions,
    pad_id: int,
    device: torch.device | str,
    first_position: int = 0,
) -> list[Forward]:
    """The model calls for one batch: one, or under `single` one a text.

    Args:
        token_ids: of all texts, none empty.
        texts: indices of the batch's texts.
        layout: how the texts share a call.
        positions: whether `position_ids` are passed.
        pad_id: token id of pads; see `pad_id`.
        device: where the model is.
        first_position: what the model calls the position of a text's first token.
    """
    groups = [(text,) for text in texts] if layout is Layout.SINGLE else [tuple(texts)]
    return [_lay_out_one(token_ids, group, layout, positions, pad_id, device, first_position) for group in groups]


def lay_out_arrays(
    array_S: Tensor, texts: Sequence[int], *, argument: str, layout: Layout, device: torch.device | str
) -> list[Forward]:
    """The model calls for images or sounds: one, or under `single` one each.

    Args:
        array_S: of all, [S, ...].
        argument: what the model calls them.
    """
    groups = [(text,) for text in texts] if layout is Layout.SINGLE else [tuple(texts)]
    return [
        Forward(
            shape=(len(group), 1),
            flat_N=torch.arange(len(group), device=device),
            lengths=(1,) * len(group),
            whole=True,
            inputs={argument: array_S[list(group)].to(device)},
            texts=group,
        )
        for group in groups
    ]


def _lay_out_one(
    token_ids: Sequence[Sequence[int]],
    texts: tuple[int, ...],
    layout: Layout,
    positions: Positions,
    pad_id: int,
    device: torch.device | str,
    first_position: int,
) -> Forward:
    lengths = tuple(len(token_ids[text]) for text in texts)
    position_N = np.concatenate([np.arange(length) for length in lengths])
    row_N, column_N, shape_BT = _places(lengths, position_N, layout)

    def spread(value_N: np.ndarray, on_pads: int) -> np.ndarray:
        value_BT = np.full(shape_BT, on_pads)
        value_BT[row_N, column_N] = value_N
        return value_BT

    inputs = {"input_ids": spread(np.concatenate([token_ids[text] for text in texts]), pad_id)}
    if layout in (Layout.PADDED_LEFT, Layout.PADDED_RIGHT):
        inputs["attention_mask"] = spread(np.ones_like(position_N), 0)
    # Packed texts get no mask: transformers looks for packing only without one, so a mask of ones leaks across texts.
    if positions is Positions.EXPLICIT:
        # 0 on pads is what transformers' own generate() passes for them; attention never reads them.
        inputs["position_ids"] = spread(position_N + first_position, 0)
    on_device = to_device(np.stack(list(inputs.values())), device).unbind()  # in one transfer
    return Forward(
        shape=shape_BT,
        flat_N=to_device(row_N * shape_BT[1] + column_N, device),
        lengths=lengths,
        inputs=dict(zip(inputs, on_device, strict=True)),
        texts=texts,
    )


def _places(
    lengths: tuple[int, ...], position_N: np.ndarray, layout: Layout
) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Row and column of each token in canonical order, and the shape (B, T) that they lie in."""
    if layout in (Layout.PACKED, Layout.SINGLE):
        return np.zeros_like(position_N), np.arange(len(position_N)), (1, len(position_N))
    longest = max(lengths)
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    first_B = longest - np.array(lengths) if layout is Layout.PADDED_LEFT else np.zeros(len(lengths), np.int64)
    return row_N, first_B[row_N] + position_N, (len(lengths), longest)


def to_tokens(tensor: Tensor, tokens: Tokens) -> Tensor | None:
    """The real tokens of a module's output, [N, F] in canonical order; F is everything behind the token dimension.

    Knows [B, T, ...], tables that all rows share [1, T, ...] (rotary embeddings under implicit positions), and
    flattened [B * T, ...] (mixture-of-experts blocks). There must be a feature dimension: [B, T] could be a pooled
    [B, D]. A view where there are no pads and the tensor is contiguous, else a copy. Does not synchronise with
    the device.

    Returns:
        None where the tensor has no token dimension, or is an attention map.
    """
    B, T = tokens.shape
    if is_attention_map(tensor, tokens):
        return None
    if tensor.dim() >= 3 and tensor.shape[:2] == (B, T):
        flat, index_N = tensor.flatten(0, 1), tokens.flat_N
    elif tensor.dim() >= 3 and tensor.shape[:2] == (1, T):
        flat, index_N = tensor[0], tokens.column_N
    elif tensor.dim() >= 2 and len(tensor) == B * T:
        flat, index_N = tensor, tokens.flat_N
    else:
        return None
    # As many rows as tokens means no pads (a shared table of several rows has fewer): the order is canonical already.
    token = flat if len(flat) == len(index_N) else flat.index_select(0, index_N.to(flat.device))
    return token.flatten(1)


def to_rows(tensor: Tensor, tokens: Tokens) -> Tensor | None:
    """`to_tokens`, or else the frames of a sound, a score a token, [B, T] as [N, 1], or the rows of the batch, [B, F].

    Cells leave these out: a layout decides how many rows a batch has.
    """
    rows_NF = to_tokens(tensor, tokens)
    if rows_NF is not None or is_attention_map(tensor, tokens) or not tensor.dim() or len(tensor) != tokens.shape[0]:
        return rows_NF
    if tokens.frames is not None and tensor.dim() == 3:
        frames = tokens.frames(tensor.shape[1])
        return tensor.flatten(1) if frames is None else to_tokens(tensor, frames)
    if is_score(tensor, tokens):
        return tensor.flatten()[tokens.flat_N.to(tensor.device)][:, None]
    return tensor.reshape(len(tensor), -1)


def is_score(tensor: Tensor, tokens: Tokens) -> bool:
    """Whether this looks like a score a token, [B, T]. It could be T features of each row all the same."""
    return tensor.shape == tokens.shape and tokens.shape[1] > 1


def is_attention_map(tensor: Tensor, tokens: Tokens) -> bool:
    """Whether this looks like attention weights, [B, H, T, T]: they have no features, and pads in two dimensions."""
    B, T = tokens.shape
    return tensor.dim() == 4 and tensor.shape[0] == B and tensor.shape[2:] == (T, T) and not tokens.whole


def is_second_map(tensor: Tensor, tokens: Tokens) -> bool:
    """`is_attention_map` for what a module gives behind its first tensor; of an image or sound, and of a step that
    looks back, whatever has four dimensions."""
    return tensor.dim() == 4 if tokens.whole or isinstance(tokens, Step) else is_attention_map(tensor, tokens)


def same_text(tokens: Tokens) -> Tensor:
    """Which tokens of a packed row are of one text, [1, 1, T, T]."""
    text_T = torch.repeat_interleave(torch.tensor(tokens.lengths)).to(tokens.flat_N.device)
    return (text_T[:, None] == text_T)[None, None]


def within(forward: Forward, distance: int) -> Tensor:
    """Which tokens of a packed row are at most so far apart, [1, 1, T, T]."""
    place_T = torch.arange(forward.shape[1], device=forward.flat_N.device)
    return ((place_T[:, None] - place_T).abs() <= distance)[None, None]


def behind_decoder_start(forward: Forward, start_id: int) -> Tensor:
    """What the decoder of an encoder-decoder reads: each text once more, one token later, [B, T].

    As transformers makes it of labels: a start token, then all tokens but the last. Decoder and encoder then have the
    same places for the same tokens. Behind an image or a sound the start token alone, [B, 1].
    """
    if forward.whole:
        return torch.full(forward.shape, start_id, device=forward.flat_N.device)
    ids_BT = forward.inputs["input_ids"]
    starts = np.cumsum((0, *forward.lengths[:-1]))
    places = forward.row_N, forward.column_N
    before_N = ids_BT.roll(1, dims=1)[places]
    before_N[torch.from_numpy(starts).to(ids_BT.device)] = start_id
    return ids_BT.index_put(places, before_N)


def pad_id(config: Any) -> int:
    """The token id for pads, from a transformers config: its pad token, else its (first) end token, else 0.

    Pads are masked, so the id must only exist in the vocabulary.
    """
    return _first_token(config, "pad_token_id", "eos_token_id")


def pad_note(config: Any) -> str | None:
    """Which token stands on pads where the config names no pad token; None where it does."""
    if _first_token(config, "pad_token_id", default=None) is not None:
        return None
    end = _first_token(config, "eos_token_id", default=None)
    return (
        f"token {pad_id(config)}: the checkpoint names no pad token{'' if end is None else ', its end token stands in'}"
    )


def decoder_start_id(config: Any) -> int:
    """The token that an encoder-decoder writes behind: as its config says, else its first token, else its pad token."""
    return _first_token(config, "decoder_start_token_id", "bos_token_id", "pad_token_id")


def _first_token(config: Any, *names: str, default: Any = 0) -> Any:
    """The first of these that the config states; the default where it states none."""
    for name in names:
        given = getattr(config, name, None)
        token = given[0] if isinstance(given, (list, tuple)) and given else given
        if isinstance(token, int) and token >= 0:
            return token
    return default
