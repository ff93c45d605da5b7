"""Which text and position a row is."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Sequence


class Places:
    """Finds a row, of those that came text by text, position by position.

    Args:
        lengths: tokens of every text.
        order: the texts as they ran; None: in their order.
    """

    def __init__(self, lengths: Sequence[int], order: Sequence[int] | None = None) -> None:
        self._order = range(len(lengths)) if order is None else order
        self._ran = list(itertools.accumulate((lengths[text] for text in self._order), initial=0))
        self._starts = list(itertools.accumulate(lengths, initial=0))

    def of(self, row: int) -> tuple[int, int, int]:
        """The text, the position in it, and the token among those of all texts in their order."""
        index = bisect.bisect_right(self._ran, row) - 1
        text, position = self._order[index], row - self._ran[index]
        return text, position, self._starts[text] + position

    def locate(self, row: int | None, rows: int) -> tuple[int | None, int | None]:
        """Text and position of one row of so many: rows are tokens, or whole texts (pooled), or neither is known."""
        if row is None or row >= rows:  # an input may have other rows than the output
            return None, None
        if rows == self._ran[-1]:
            return self.of(row)[:2]
        return (self._order[row], None) if rows == len(self._order) else (None, None)
