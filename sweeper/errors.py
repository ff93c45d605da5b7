"""Everything that sweeper raises on purpose: one root, so that a caller can catch all of it at once.

A message of a `ConfigError` is one line: what was given, what is allowed, what to type instead.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Control characters, half a surrogate pair, and what turns the direction of writing: they steer a terminal.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_LONGEST_LINE = 3000


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


def printable(text: str) -> str:
    """The text with everything that would steer a terminal as an escape; line ends and tabs stay."""
    return _STEERING.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


def one_line(text: str) -> str:
    """A message as one line that can be printed, whatever a user or a library put into it."""
    line = printable(" ".join(text.split()))
    return line if len(line) <= _LONGEST_LINE else f"{line[: _LONGEST_LINE // 2]} ... {line[-_LONGEST_LINE // 2 :]}"


def shown(value: object) -> str:
    """A value that was given, in a message: as Python writes it, the middle left out where it is long."""
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:60]}...{text[-40:]}"
