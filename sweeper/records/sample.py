"""The part of a cell's record that holds inputs as they were, and corners of the output."""

from __future__ import annotations

from sweeper.records.schema import Record

CORNER = 3
"""How many of the first and of the last rows and columns a `Corner` keeps."""


class Corner(Record):
    """The first and last three rows and columns of a matrix, as torch prints a large one.

    Attributes:
        shape: rows and columns of the matrix.
        rows: what was kept of each kept row: its numbers, exact, separated by blanks (a row is a line in cell.json).
    """

    shape: tuple[int, int]
    rows: tuple[str, ...]

    def at(self, row: int, column: int) -> float | None:
        """One element; -1 is the last row or column. None outside the corner."""
        rows, columns = self.shape
        row, column = row + rows * (row < 0), column + columns * (column < 0)
        kept_rows, kept_columns = corner_places(rows), corner_places(columns)
        if row not in kept_rows or column not in kept_columns:
            return None
        return float(self.rows[kept_rows.index(row)].split()[kept_columns.index(column)])


def corner_places(size: int) -> list[int]:
    """The rows (or columns) of a matrix with so many of them that a `Corner` keeps."""
    return [*range(min(CORNER, size)), *range(max(CORNER, size - CORNER), size)]


class CallRecord(Record):
    """What the model was called with, once. Each [B, T]: a text a row, its numbers separated by blanks.

    Attributes:
        input_ids, attention_mask, position_ids, decoder_input_ids: the arguments; None where it was not passed.
    """

    input_ids: tuple[str, ...] = ()
    attention_mask: tuple[str, ...] | None = None
    position_ids: tuple[str, ...] | None = None
    decoder_input_ids: tuple[str, ...] | None = None


class Sample(Record):
    """A cell's inputs as they were, and a corner of its output: enough to compare it with a printed tensor.

    Attributes:
        calls: of the first batch; empty where it has more than 4096 tokens, pads included.
        texts: of each text of the first batch, its output [tokens, features].
        padded_rows: of each row of the first batch, its output [columns, features], pads included; empty unless padded.
    """

    calls: tuple[CallRecord, ...]
    texts: tuple[Corner, ...]
    padded_rows: tuple[Corner, ...]
