"""What a model gave, leaf by leaf, as rows of numbers that two sides can compare.

Rows are tokens where the leaf has some, else rows of the batch; what has neither is one row, compared whole.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sweeper.comparator.leaves import CACHE, Leaf, numbers
from sweeper.errors import AlignmentError
from sweeper.inputs.layout import Tokens, is_attention_map, is_score, to_rows, to_tokens

Outputs = dict[str, Tensor]
_LARGE_BYTES = 2**28
Layout = Literal["tokens", "rows", "whole"]


@dataclass(frozen=True)
class Described:
    """How an output lies in its rows.

    Attributes:
        layout: what a row is.
        shape: as the model gave it, of the first call.
        discrete: it was no floating-point tensor: rounding can only flip it.
        main: its tokens are not those of an encoder beside a decoder.
    """

    layout: Layout
    shape: tuple[int, ...]
    discrete: bool
    main: bool


@dataclass(frozen=True)
class Part:
    """The part of one output that the other side gives too.

    Attributes:
        name: of the output, on both sides. own: what it is called on this one.
        columns: so many features, the first ones; None: all.
        last: the last columns of each row of tokens; None: all.
    """

    name: str
    own: str
    columns: int | None = None
    last: int | None = None

    def of(self, value: Tensor, tokens: Tokens | None) -> tuple[Tensor, Tokens | None]:
        """The part, and where its tokens are."""
        value = value if self.columns is None else value[..., : self.columns]
        if self.last is None:
            return value, tokens
        value = value[:, None] if value.dim() == 2 else value[:, -self.last :]
        return value, None if tokens is None else tokens.last(self.last)


class ModelOutputs(Outputs):
    """A model's outputs by name, [N, F] each in a floating-point dtype.

    Args:
        parts: what is taken; None: all but caches.

    Attributes:
        caches: what lies in caches, where nobody says what is taken: state that is carried along.
        described: how each of them lies; not the pooled embeddings.
        at_pads: what lies at pads of outputs [B, T]: they may be scores of tokens, or T features of each row.
        left_out: what holds no numbers, with the reason.
    """

    def __init__(self, parts: Sequence[Part] | None = None) -> None:
        super().__init__()
        self.described: dict[str, Described] = {}
        self.at_pads: dict[str, Tensor] = {}
        self.left_out: dict[str, str] = {}
        self.caches: ModelOutputs | None = None
        self._parts = None if parts is None else {part.own: part for part in parts}
        self._pieces: dict[str, list[Tensor]] = {}
        self._pads: dict[str, list[Tensor]] = {}

    def add(self, leaf: Leaf, tokens: Tokens) -> None:
        """Takes a leaf of one call."""
        if leaf.cache and self._parts is None:
            self.caches = self.caches or ModelOutputs([])
            self.caches._take(Part(leaf.name, leaf.name), leaf, tokens)
            return
        part = Part(leaf.name, leaf.name) if self._parts is None else self._parts.get(leaf.name)
        if part is not None:
            self._take(part, leaf, tokens)

    def _take(self, part: Part, leaf: Leaf, tokens: Tokens) -> None:
        value = leaf.value if isinstance(leaf.value, str) else numbers(leaf.value)
        if isinstance(value, str) or isinstance(leaf.value, str):
            self.left_out[part.name] = str(value)
            return
        value = value.to(tokens.flat_N.device)  # a model on several GPUs leaves its caches where they are
        value, mine = part.of(value, _tokens_of(leaf, tokens))
        value = value.transpose(1, 2) if leaf.cache and value.dim() == 4 else value
        layout, rows_NF = _rows(value, mine)
        if mine is not None and is_score(value, mine) and not mine.all_real:
            pads_BT = torch.ones(math.prod(mine.shape), dtype=torch.bool, device=value.device)
            pads_BT[mine.flat_N] = False
            self._pads.setdefault(part.name, []).append(value.flatten()[pads_BT])
        discrete = not leaf.value.is_floating_point() and not leaf.value.is_complex()
        main = mine is None or mine is not tokens.encoder
        self.described.setdefault(part.name, Described(layout, tuple(leaf.value.shape), discrete, main))
        self._pieces.setdefault(part.name, []).append(rows_NF)

    def end(self, lasting: Callable[[Tensor], Tensor]) -> None:
        """All calls were taken: their rows follow one another.

        Args:
            lasting: copies what would not last.
        """
        for name, pieces in self._pieces.items():
            if self.described[name].layout == "whole":
                self[name] = torch.cat(pieces, dim=1)
            elif len({piece.shape[1] for piece in pieces}) == 1:
                self[name] = torch.cat(pieces) if len(pieces) > 1 else lasting(pieces[0])
            else:
                self.left_out[name] = f"other features in each call: {[piece.shape[1] for piece in pieces]}"
        self.at_pads = {name: torch.cat(pads) for name, pads in self._pads.items()}
        self._pieces, self._pads = {}, {}
        if self.caches is not None:
            self.caches.end(lasting)

    def follows_rows(self, name: str) -> bool:
        """Whether it has the rows of the batch, or of its tokens, and is not made of several of them: of what is whole
        nobody knows where they are, and [B, B] compares the rows with each other."""
        described = self.described.get(name)
        if described is None:
            return True
        among_rows = described.shape[:1] == described.shape[1:2] and described.layout == "rows"
        return described.layout != "whole" and described.main and not among_rows

    def is_discrete(self, name: str) -> bool:
        """Whether it was no floating-point tensor."""
        return name in self.described and self.described[name].discrete

    def taken(self, parts: Sequence[Part]) -> ModelOutputs:
        """These parts of it, where none leaves out rows or columns."""
        taken = ModelOutputs(parts)
        for part in parts:
            source = self if part.own in self or self.caches is None else self.caches
            taken[part.name] = source[part.own]
            if part.own in source.described:
                taken.described[part.name] = source.described[part.own]
        return taken


@contextlib.contextmanager
def aside(*outputs: Outputs) -> Iterator[None]:
    """Keeps large outputs on the host for as long as the context lasts: logits in float64 are as large as models."""
    devices: list[tuple[Outputs, str, torch.device]] = []
    try:
        for group in outputs:
            for name, tensor in group.items():
                if tensor.device.type != "cpu" and tensor.nbytes >= _LARGE_BYTES:
                    devices.append((group, name, tensor.device))
                    group[name] = tensor.cpu()
        yield
    finally:
        for group, name, device in devices:
            group[name] = group[name].to(device)


def _rows(value: Tensor, tokens: Tokens | None) -> tuple[Layout, Tensor]:
    if tokens is None:
        return "whole", value.reshape(1, -1)
    token_NF = to_tokens(value, tokens)
    if token_NF is not None:
        return "tokens", token_NF
    rows_NF = to_rows(value, tokens)
    if rows_NF is not None:
        return ("tokens" if is_score(value, tokens) or len(rows_NF) != len(value) else "rows"), rows_NF
    if is_attention_map(value, tokens) and not tokens.all_real:
        real_BT = torch.zeros(math.prod(tokens.shape), dtype=torch.bool, device=value.device)
        real_BT[tokens.flat_N] = True
        real_BT = real_BT.view(tokens.shape)
        value = value.masked_fill(~(real_BT[:, None, :, None] & real_BT[:, None, None, :]), 0)
    return "whole", value.reshape(1, -1)


# Outputs of a model that has other tokens as well, which are known to be of those that it writes.
_MAIN = ("logits", "last_hidden_state", "hidden_states", "output", CACHE, "decoder_", "text_", "language_")


def _tokens_of(leaf: Leaf, tokens: Tokens) -> Tokens | None:
    """The token map that an output belongs to, by its name where there are several kinds; without a name that tells,
    only the rows of the batch: a mask is laid over nothing that it may not belong to."""
    if tokens.one_kind:
        return tokens
    if tokens.encoder is not None:
        if leaf.name.startswith("encoder_") or (leaf.cache and "cross_attention" in leaf.name):
            return tokens.encoder
        if "cross_attention" in leaf.name:
            return None
    known = leaf.name.startswith(_MAIN) and not leaf.name.startswith("output[")
    return tokens if known else tokens.rows_only()


class Shared(NamedTuple):
    """What two sides' outputs have in common.

    Attributes:
        reference, candidate: the parts of each side, in the same order.
        partly: what is compared in part, or under another name, or is on one side only; with what is left out.
        uncompared: what both have and cannot be compared.
    """

    reference: tuple[Part, ...]
    candidate: tuple[Part, ...]
    partly: dict[str, str]
    uncompared: dict[str, str]


def share(reference: ModelOutputs, candidate: ModelOutputs) -> Shared:
    """Pairs outputs by name, what is left by the shape that they share.

    Caches are laid out as the model likes. They take part only where all else has the same bits: there a difference in
    them is the only one.

    Raises:
        AlignmentError: nothing can be compared; both sides are named.
    """
    parts: list[tuple[Part, Part]] = []
    partly: dict[str, str] = {}
    uncompared = {name: candidate.left_out[name] for name in reference.left_out if name in candidate.left_out}
    names = [(name, name) for name in reference if name in candidate]
    left = [name for name in reference if name not in candidate]
    right = [name for name in candidate if name not in reference]
    for own in list(left):
        for other in right:
            if _part(own, reference, other, candidate) is not None:
                names.append((own, other))
                left.remove(own)
                right.remove(other)
                break
    for own, other in names:
        pair = _part(own, reference, other, candidate)
        if pair is not None:
            parts.append(pair)
            if said := _said(own, reference, other, candidate, pair[0]):
                partly[own] = said
        else:
            shapes = (_described_shape(side, name) for side, name in ((reference, own), (candidate, other)))
            uncompared[own] = "shape {} in the reference, {} in the candidate".format(*shapes)
    partly |= dict.fromkeys(left, "only the reference gives it") | dict.fromkeys(right, "only the candidate gives it")
    if not parts:
        raise AlignmentError(
            f"no output can be compared: {_listed(reference)} in the reference, {_listed(candidate)} in the candidate"
        )
    if all(_same(*pair, reference, candidate) for pair in parts):
        parts += _differing_caches(reference.caches, candidate.caches)
    return Shared(tuple(own for own, _ in parts), tuple(other for _, other in parts), partly, uncompared)


def _same(part: Part, other: Part, reference: ModelOutputs, candidate: ModelOutputs) -> bool:
    return part.last is None and part.columns is None and same_bits(reference[part.own], candidate[other.own])


def _differing_caches(reference: ModelOutputs | None, candidate: ModelOutputs | None) -> list[tuple[Part, Part]]:
    if reference is None or candidate is None:
        return []
    shared = [name for name in reference if name in candidate and reference[name].shape == candidate[name].shape]
    differing = [name for name in shared if not same_bits(reference[name], candidate[name])]
    return [(Part(name, name), Part(name, name)) for name in differing]


_RAW = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # what has a number's bits, by its bytes


def same_raw_bits(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one dtype, shape and device are sure to have the same bits."""
    raw = _RAW.get(left.itemsize) if left.layout is right.layout is torch.strided else None
    return raw is not None and torch.equal(left.detach().view(raw), right.detach().view(raw))


def same_bits(reference: Tensor, candidate: Tensor) -> bool:
    """Whether all values are the same, -0 apart from 0 and NaN as NaN."""
    if reference.shape != candidate.shape:
        return False
    if reference.dtype == candidate.dtype and reference.is_floating_point():
        if same_raw_bits(reference, candidate):
            return True
        if not reference.isnan().any():  # a NaN has many bits
            return False
    left, right = (tensor if tensor.is_floating_point() else tensor.double() for tensor in (reference, candidate))
    same = (left == right) & (left.signbit() == right.signbit()) | (left.isnan() & right.isnan())
    return bool(same.all())


def _part(own: str, reference: ModelOutputs, other: str, candidate: ModelOutputs) -> tuple[Part, Part] | None:
    """What two outputs share: everything, the first features of each row, or the last tokens of each row."""
    left, right = reference.described.get(own), candidate.described.get(other)
    if left is None or right is None:  # pooled
        same = left is right and own == other and reference[own].shape == candidate[other].shape
        return (Part(own, own), Part(own, own)) if same else None
    rows = len(reference[own]), len(candidate[other])
    if left.layout == right.layout and rows[0] == rows[1] and len(left.shape) == len(right.shape):
        if reference[own].shape == candidate[other].shape:
            return Part(own, own), Part(own, other)
        fits = len(left.shape) > 1 and left.shape[2:-1] == right.shape[2:-1] and left.layout != "whole"
        columns = _columns(left, right)
        return (Part(own, own, columns), Part(own, other, columns)) if fits and columns else None
    number = _last_tokens(left, right) or _last_tokens(right, left)
    columns = _columns(left, right) if number else 0
    return (Part(own, own, columns, number), Part(own, other, columns, number)) if columns else None


def _columns(left: Described, right: Described) -> int:
    """How many features both have, where one has some more (a padded vocabulary); 0: they are not the same features."""
    fewer, more = sorted((left.shape[-1], right.shape[-1]))
    return fewer if fewer > 1 and 2 * fewer >= more else 0


def _last_tokens(all_tokens: Described, last: Described) -> int | None:
    """How many tokens of each row one output has where another has all: [B, K, F] or [B, F] beside [B, T, F]."""
    if all_tokens.layout != "tokens" or last.layout != "rows" or len(all_tokens.shape) != 3:
        return None
    if not 2 <= len(last.shape) <= 3 or last.shape[-1] < 2 or last.shape[0] != all_tokens.shape[0]:
        return None
    number = last.shape[1] if len(last.shape) == 3 else 1
    return number if number < all_tokens.shape[1] else None


def _said(own: str, reference: ModelOutputs, other: str, candidate: ModelOutputs, part: Part) -> str:
    """What is not compared of a pair; empty where all is."""
    said = [] if own == other else [f"called {other} in the candidate"]
    shapes = [_described_shape(reference, own), _described_shape(candidate, other)]
    if part.last is not None:
        said.append(f"compared in the last {part.last} tokens of each row, of shapes {shapes[0]} and {shapes[1]}")
    elif part.columns is not None:
        said.append(f"compared in the first {part.columns} features, of shapes {shapes[0]} and {shapes[1]}")
    return "; ".join(said)


def _described_shape(outputs: ModelOutputs, name: str) -> tuple[int, ...]:
    return outputs.described[name].shape if name in outputs.described else tuple(outputs[name].shape)


def _listed(outputs: ModelOutputs) -> str:
    given = [f"{name} {_described_shape(outputs, name)}" for name in outputs]
    return ", ".join([*given, *(f"{name} ({reason})" for name, reason in outputs.left_out.items())]) or "nothing"
