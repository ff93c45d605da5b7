"""The layers' outputs token by token, of the texts whose output moved most: bounded, whatever the inputs are.

Of each batch `WATCHED` tokens are measured, and of all of these the `MOST_TEXTS` worst texts stay.

Shapes: N tokens of a piece of a batch, W tokens of a batch that are watched, F features, G tensors that are measured
at once, L layers, S texts, T tokens of a text; 2 figures, `max_abs` and `rel_l2`.
"""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sweeper.devices import to_device
from sweeper.records.cell import TokenFigures

WATCHED = 512  # tokens of a batch, of its first texts
MOST_TEXTS = 3  # that are kept
MOST_POSITIONS = 128  # of a text, from its start
# Bytes of both sides that wait to be measured together: on a GPU for few launches, on a CPU what the caches hold.
_GROUP_BYTES = {"cuda": 2**24, "cpu": 2**18}


@dataclass
class _Batch:
    """What is watched of one batch: some of its texts, their rows, and what came of its layers so far."""

    tokens: int
    texts: list[int]  # that are watched
    places: list[int]  # theirs in the batch
    lengths: list[int]  # how many rows of each
    rows: list[int]
    seen: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    measured: list[tuple[tuple[str, ...], Tensor]] = field(default_factory=list)  # names_G, figures_GN2

    def complete(self) -> tuple[list[str], list[Tensor]]:
        """The layers that gave all rows, in the order in which they were measured first, and their figures: tensors
        that are [L, W, 2] behind one another."""
        names = [name for together, _ in self.measured for name in together]
        if len({*names}) == len(names) and all(self.seen[name] == self.tokens for name in names):
            return names, [figures_GN2 for _, figures_GN2 in self.measured]  # nearly always
        pieces: defaultdict[str, list[Tensor]] = defaultdict(list)
        for together, figures_GN2 in self.measured:
            for name, figures_1N2 in zip(together, figures_GN2.split(1), strict=True):
                pieces[name].append(figures_1N2)
        names = [name for name in pieces if self.seen[name] == self.tokens]
        return names, [torch.cat(pieces[name], dim=1) for name in names]


class TokenAccumulator:
    """Takes the outputs of layers on both sides as they are compared; no device synchronisation until `finish`.

    Args:
        lengths: tokens of every text.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = lengths
        self._width = min(max(lengths, default=0), MOST_POSITIONS)
        self._batch: _Batch | None = None
        self._waiting: list[tuple[str, Tensor, Tensor]] = []
        self._waiting_bytes = 0
        self._indices: dict[tuple[int, int], Tensor] = {}
        self._planes: Tensor | None = None
        self._names: list[str] | None = None
        self._kept: tuple[Tensor, Tensor, Tensor] | None = None  # texts_S, how far they moved, figures_SLT2

    def begin_batch(self, texts: Sequence[int]) -> None:
        """Says which texts come next, so that their rows are known by their place."""
        lengths = [self._lengths[text] for text in texts]
        batch = _Batch(tokens=sum(lengths), texts=[], places=[], lengths=[], rows=[])
        start = 0
        for place, (text, length) in enumerate(zip(texts, lengths, strict=True)):
            shown = min(length, MOST_POSITIONS)
            if shown and len(batch.rows) + shown <= WATCHED:
                batch.texts.append(text)
                batch.places.append(place)
                batch.lengths.append(shown)
                batch.rows += range(start, start + shown)
            start += length
        self._batch = batch
        self._indices.clear()

    def take(self, name: str, reference_NF: Tensor, candidate_NF: Tensor) -> None:
        """Takes the next rows of a layer's output, which nobody may overwrite."""
        if self._batch is None:
            return
        start = self._batch.seen[name]
        stop = self._batch.seen[name] = start + len(reference_NF)
        index = self._index(start, stop, candidate_NF.device)
        if not len(index):
            return
        if len(index) < stop - start:  # a copy, so that the others can die
            reference_NF, candidate_NF = (side.index_select(0, index) for side in (reference_NF, candidate_NF))
        self._waiting.append((name, reference_NF, candidate_NF))
        self._waiting_bytes += reference_NF.nbytes + candidate_NF.nbytes
        if self._waiting_bytes >= _GROUP_BYTES.get(candidate_NF.device.type, 0):
            self._measure()

    def _index(self, start: int, stop: int, device: torch.device) -> Tensor:
        """Which rows of a piece of the batch are watched; the pieces of all layers mostly are the same."""
        if (start, stop) not in self._indices:
            assert self._batch is not None
            first, last = (bisect.bisect_left(self._batch.rows, row) for row in (start, stop))
            rows = [row - start for row in self._batch.rows[first:last]]
            self._indices[start, stop] = to_device(rows, device)
        return self._indices[start, stop]

    def _measure(self) -> None:
        """Measures what waits, tensors of one kind together."""
        assert self._batch is not None
        groups = defaultdict(list)
        for name, *pair in self._waiting:
            groups[tuple((side.shape, side.dtype) for side in pair)].append((name, *pair))
        for group in groups.values():
            names, references, candidates = zip(*group, strict=True)
            sides = (torch.stack(side) if len(side) > 1 else side[0][None] for side in (references, candidates))
            self._batch.measured.append((names, self._figures(*sides)))
        self._waiting, self._waiting_bytes = [], 0

    def _figures(self, reference_GNF: Tensor, candidate_GNF: Tensor) -> Tensor:
        """`token_figures` in memory that is kept: on a CPU, memory that is fresh every time takes most of the time."""
        size = reference_GNF.numel()
        if self._planes is None or self._planes.shape[1] < size:
            self._planes = torch.empty(2, size, dtype=torch.float64, device=reference_GNF.device)
        reference, difference = (plane[:size].view_as(reference_GNF) for plane in self._planes)
        return token_figures(reference.copy_(reference_GNF), difference.copy_(candidate_GNF).sub_(reference))

    def end_batch(self, moved_S: Tensor) -> None:
        """Keeps the worst of this batch's texts and of those before.

        Args:
            moved_S: how far each text of the batch moved; one that is not a number moved further than any.
        """
        if self._batch is None:
            return
        self._measure()
        batch, self._batch = self._batch, None
        complete, figures = batch.complete()
        self._names = self._names or complete
        if not complete or self._names != complete:  # rows that are no tokens, or layers that do not always run
            return
        self._keep(batch, torch.cat(figures), moved_S.nan_to_num(nan=torch.inf))

    def _keep(self, batch: _Batch, figures_LW2: Tensor, moved_S: Tensor) -> None:
        device = figures_LW2.device
        beyond = figures_LW2.shape[1]  # a row behind the last, for the places behind the end of a text
        index, start = [], 0
        for length in batch.lengths:
            index += [start + i if i < length else beyond for i in range(self._width)]
            start += length
        padded_LW2 = torch.nn.functional.pad(figures_LW2, (0, 0, 0, 1))
        figures_SLT2 = padded_LW2[:, to_device(index, device)].unflatten(1, (len(batch.lengths), -1)).transpose(0, 1)
        texts_S, places_S = to_device(batch.texts, device), to_device(batch.places, device)
        self._kept = self._worst((texts_S, moved_S[places_S], figures_SLT2))

    def _worst(self, here: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        together = [torch.cat(pair) for pair in zip(self._kept, here, strict=True)] if self._kept else list(here)
        order_S = together[1].sort(descending=True, stable=True).indices[:MOST_TEXTS]
        texts_S, moved_S, figures_SLT2 = (values[order_S] for values in together)
        return texts_S, moved_S, figures_SLT2

    def finish(self) -> dict[str, TokenFigures]:
        """The figures by layer, the worst text first; none where nothing differs or nothing was watched."""
        if self._kept is None or self._names is None:
            return {}
        texts, figures_SLT2 = self._kept[0].tolist(), self._kept[2].cpu()
        if not figures_SLT2.any():
            return {}
        shown = [min(self._lengths[text], MOST_POSITIONS) for text in texts]
        places = [(text, position) for text, length in zip(texts, shown, strict=True) for position in range(length)]
        text, position = zip(*places, strict=True)
        rows_LN2 = torch.cat([figures_SLT2[i, :, :length] for i, length in enumerate(shown)], dim=1)
        columns = zip(self._names, *rows_LN2.movedim(2, 0).tolist(), strict=True)
        return {
            name: TokenFigures(text=text, position=position, max_abs=tuple(max_abs), rel_l2=tuple(rel_l2))
            for name, max_abs, rel_l2 in columns
        }


def token_figures(reference: Tensor, difference: Tensor) -> Tensor:
    """`max_abs` and `rel_l2` of each row, [..., F] -> [..., 2], as `metrics.pair` defines them.

    Not a number, or infinite, where an element of the row is not finite.

    Args:
        reference: in float64.
        difference: candidate minus reference, in float64; it is overwritten.
    """
    norm, of_reference = (torch.linalg.vector_norm(rows, dim=-1) for rows in (difference, reference))
    rel_l2 = (norm / of_reference).masked_fill(norm == 0, 0.0)
    return torch.stack([difference.abs_().amax(-1), rel_l2], dim=-1)
