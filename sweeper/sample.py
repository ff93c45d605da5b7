"""What a cell was called with, and a corner of what came out: to be compared with tensors that others printed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from sweeper.capture import tensors_of
from sweeper.layout import Forward
from sweeper.results import CallRecord, Corner, Sample, corner_places

MOST_TOKENS = 4096  # of a batch whose calls are recorded, pads included: about 50 KiB of text in cell.json


@contextmanager
def kept_outputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first tensor that each call of `module` gives, as it gives it; the caller empties the list."""
    outputs: list[Tensor] = []

    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        outputs.append(tensors_of(output)[0])

    handle = module.register_forward_hook(hook)
    try:
        yield outputs
    finally:
        handle.remove()


class Sampler:
    """Takes the corners on the device; `sample` brings them to the host.

    Args:
        batch: the calls of one batch.
        outputs: what each gave, [B, T, F].
        output_NF: the same over real tokens, in canonical order.
    """

    def __init__(self, batch: Sequence[Forward], outputs: Sequence[Tensor], output_NF: Tensor) -> None:
        self._batch = batch
        lengths = [length for forward in batch for length in forward.lengths]
        self._texts = [_corner(text_TF) for text_TF in output_NF.split(lengths)]
        padded = [o for o, forward in zip(outputs, batch, strict=True) if "attention_mask" in forward.inputs]
        self._rows = [_corner(row_TF) for output_BTF in padded for row_TF in output_BTF]

    def sample(self) -> Sample:
        tokens = sum(forward.inputs["input_ids"].numel() for forward in self._batch)
        return Sample(
            calls=tuple(map(_call, self._batch)) if tokens <= MOST_TOKENS else (),
            texts=tuple(_corner_record(*corner) for corner in self._texts),
            padded_rows=tuple(_corner_record(*corner) for corner in self._rows),
        )


def _corner(matrix: Tensor) -> tuple[tuple[int, int], Tensor]:
    """The shape of a matrix, and its corner, copied: the matrix itself can be freed."""
    rows, columns = matrix.shape
    return (rows, columns), matrix[corner_places(rows)][:, corner_places(columns)]


def _corner_record(shape: tuple[int, int], corner: Tensor) -> Corner:
    return Corner(shape=shape, rows=tuple(" ".join(map(repr, row)) for row in corner.double().tolist()))


def _call(forward: Forward) -> CallRecord:
    return CallRecord(
        **{name: tuple(" ".join(map(str, row)) for row in rows.tolist()) for name, rows in forward.inputs.items()}
    )
