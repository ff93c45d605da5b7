"""What a cell was called with, and a corner of what came out: to be compared with tensors that others printed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from sweeper.comparator.side import Call
from sweeper.devices import to_device
from sweeper.records.sample import CallRecord, Corner, Sample, corner_places

MOST_TOKENS = 4096  # of a batch whose calls are recorded, pads included: about 50 KiB of text in cell.json


class Sampler:
    """Takes the corners on the device; `sample` brings them to the host.

    Args:
        batch: the calls of one batch.
        outputs: what each gave, [B, T, F].
        output_NF: the same over real tokens, in canonical order.
    """

    def __init__(self, batch: Sequence[Call], outputs: Sequence[Tensor], output_NF: Tensor) -> None:
        self._batch = batch
        lengths = [length for call in batch for length in call.forward.lengths]
        if len(output_NF) == len(lengths):  # a classifier's: a row a text
            lengths = [1] * len(lengths)
        self._texts = _Corners(output_NF, lengths)
        self._rows = [
            _Corners(output_BTF.flatten(0, 1), [output_BTF.shape[1]] * output_BTF.shape[0])
            for output_BTF, call in zip(outputs, batch, strict=True)
            if _is_block(call.kwargs.get("attention_mask")) and output_BTF.dim() > 2
        ]

    def sample(self) -> Sample:
        tokens = sum(math.prod(call.forward.shape) for call in self._batch)
        return Sample(
            calls=tuple(map(_call, self._batch)) if tokens <= MOST_TOKENS else (),
            texts=tuple(self._texts.records()),
            padded_rows=tuple(itertools.chain.from_iterable(corners.records() for corners in self._rows)),
        )


class _Corners:
    """Corners of matrices that lie one below the other in `stacked_NF`: copied at once, so that it can be freed.

    Args:
        lengths: rows of each matrix.
    """

    def __init__(self, stacked_NF: Tensor, lengths: Sequence[int]) -> None:
        self._shapes = [(length, stacked_NF.shape[1]) for length in lengths]
        starts = itertools.accumulate(lengths[:-1], initial=0)
        rows = [start + place for start, length in zip(starts, lengths, strict=True) for place in corner_places(length)]
        columns = corner_places(stacked_NF.shape[1])
        # one copy: indexing with lists would wait for the device at each of them
        places = to_device(rows + columns, stacked_NF.device)
        row_N, column_F = places.split([len(rows), len(columns)])
        self._kept = stacked_NF[row_N[:, None], column_F]

    def records(self) -> Iterator[Corner]:
        """Reads all corners in one transfer."""
        rows = iter([" ".join(map(repr, row)) for row in self._kept.double().tolist()])
        for shape in self._shapes:
            yield Corner(shape=shape, rows=tuple(itertools.islice(rows, len(corner_places(shape[0])))))


def _call(call: Call) -> CallRecord:
    tensors = {name: call.kwargs[name].tolist() for name in CallRecord.model_fields if _is_block(call.kwargs.get(name))}
    return CallRecord(**{name: tuple(" ".join(map(str, row)) for row in rows) for name, rows in tensors.items()})


def _is_block(value: Any) -> bool:
    """Whether this is a number a token, [B, T]: the mask that keeps packed texts apart is none."""
    return isinstance(value, Tensor) and value.dim() == 2
