"""What torch says when it takes another kernel than usual, for lack of memory say: another result, only a warning."""

from __future__ import annotations

import functools
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SAID = re.compile(r"switching to |(falling|fall|fell) back to ", re.IGNORECASE)


@contextmanager
def fallbacks_heard() -> Iterator[list[str]]:
    """The sentences that are said inside, each once; every other warning is shown as before."""
    said: list[str] = []
    shown = warnings.showwarning

    def hear(message: Warning | str, *where: Any, **more: Any) -> None:
        text = " ".join(str(message).split())
        if not _SAID.search(text):
            shown(message, *where, **more)
        elif text not in said:
            said.append(text)

    _heard_every_time()
    warnings.showwarning = hear
    try:
        yield said
    finally:
        warnings.showwarning = shown


@functools.cache
def _heard_every_time() -> None:
    """Python tells a warning of one place once, and so of the first cell alone."""
    warnings.filterwarnings("always", message=f"(?s).*({_SAID.pattern})", category=UserWarning)
