"""Python's garbage collector during a sweep: it finds nothing there, and takes a twentieth of the host's time to; of
the time that imports take, a fifth."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

# Containers between two looks at the youngest; Python's own is 700 to 2,000. A cell makes some 10,000 that last: hooks,
# records, pairs. No tensor needs the collector to go, and where a model does the pool calls it.
_YOUNG = 200_000


def collect_seldom() -> None:
    """Makes the collector look seldom in this process; one that is turned off stays so."""
    young, *older = gc.get_threshold()
    gc.set_threshold(max(young, _YOUNG) if young else 0, *older)


@contextlib.contextmanager
def collecting_seldom() -> Iterator[None]:
    """`collect_seldom` for as long as the context lasts."""
    before = gc.get_threshold()
    collect_seldom()
    try:
        yield
    finally:
        if not gc.get_freeze_count():
            gc.freeze()
            gc.unfreeze()  # they are old ones now: as young ones they would be looked through at once
        gc.set_threshold(*before)
