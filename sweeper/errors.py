"""Everything that sweeper raises on purpose: one root, so that a caller can catch all of it at once.

A message of a `ConfigError` is one line: what was given, what is allowed, what to type instead.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SweeperError(Exception):
    """Root of all errors that sweeper raises on purpose."""


class ConfigError(SweeperError, ValueError):
    """Something was asked for that does not exist or cannot be combined. Exit code 2, before any model is loaded."""


class DamagedError(ConfigError):
    """A file of a sweep that is not what was written, or not for this version. The message begins with its path."""


class UnsupportedError(SweeperError, RuntimeError):
    """A cell that cannot run on this machine or with this checkpoint; its message is the reason. No failure."""


class CheckpointError(SweeperError, RuntimeError):
    """A checkpoint could not be fetched, verified or prepared."""


class AlignmentError(SweeperError, ValueError):
    """Reference and candidate have different modules or tokens; the message names both sides."""


def did_you_mean(word: str, allowed: Iterable[str]) -> str:
    """The end of a message about a word that does not exist: the one that may be meant, and all that do."""
    known = list(allowed)
    close = difflib.get_close_matches(word, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else "."
    return f"{hint} Allowed: {', '.join(known)}" if known else hint
