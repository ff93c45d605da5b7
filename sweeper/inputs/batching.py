"""Which texts share a forward, and which are compared together where the two sides share them out otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from sweeper.config import Batch, Cell
from sweeper.inputs.texts import batches

Texts = tuple[int, ...]

SIZES: dict[Batch, int] = {
    batch: 1 if batch is Batch.ALONE else int(batch.split("_")[1]) for batch in Batch if batch is not Batch.INPUTS
}


def forwards_of(cell: Cell, token_ids: Sequence[Sequence[int]], texts: Sequence[int] | None = None) -> list[Texts]:
    """The texts of each forward of a cell, in the order in which they run.

    Args:
        token_ids: of all texts.
        texts: some of them: those forwards that they fill, else as if there were no others; None: all.
    """
    everything = _shared_out(cell, token_ids, range(len(token_ids)))
    if texts is None:
        return everything
    inside = [forward for forward in everything if set(forward) <= set(texts)]
    filled = sum(map(len, inside)) == len(texts)
    return inside if filled else _shared_out(cell, token_ids, texts)


def _shared_out(cell: Cell, token_ids: Sequence[Sequence[int]], texts: Sequence[int]) -> list[Texts]:
    if cell.batch is Batch.INPUTS:
        places = batches([token_ids[text] for text in texts], cell.inputs.batch_size)
        return [tuple(texts[place] for place in forward) for forward in places]
    size, order = SIZES[cell.batch], list(texts)
    if cell.batch.endswith("_sorted"):
        order.sort(key=lambda text: len(token_ids[text]), reverse=True)  # the longest first, as they need most memory
    return [tuple(sorted(order[start : start + size])) for start in range(0, len(order), size)]


def compared_together(reference: Sequence[Texts], candidate: Sequence[Texts]) -> list[Texts]:
    """The smallest groups of texts that no forward of either side crosses.

    Where both sides share the texts out alike, these are the forwards as they run; else each group is in the order of
    its texts. Whatever is compared waits for its group: sorted batches may have all texts in one.
    """
    if list(reference) == list(candidate):
        return list(reference)
    group_of = {text: text for forward in reference for text in forward}

    def first(text: int) -> int:
        while group_of[text] != text:
            text = group_of[text]
        return text

    for forward in [*reference, *candidate]:
        firsts = sorted({first(text) for text in forward})
        group_of |= dict.fromkeys(firsts, firsts[0])
    groups: dict[int, list[int]] = {}
    for text in sorted(group_of):
        groups.setdefault(first(text), []).append(text)
    return [tuple(group) for group in groups.values()]


def idle(cell: Cell, token_ids: Sequence[Sequence[int]]) -> str | None:
    """Why the cell's batches are those of another value of the axis; None where they are its own."""
    own = forwards_of(cell, token_ids)
    if cell.batch is Batch.INPUTS:
        return None
    if cell.batch.endswith("_sorted"):
        unsorted = cell.model_copy(update={"batch": Batch(cell.batch.removesuffix("_sorted"))})
        if sorted(own) == sorted(forwards_of(unsorted, token_ids)):
            return "sorted by length, the texts share the same forwards"
    if SIZES[cell.batch] > len(token_ids):
        return f"there are only {len(token_ids)} texts, which share one forward"
    return None
