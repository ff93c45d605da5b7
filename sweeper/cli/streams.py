"""Standard output and error as they may be: closed, of an encoding without our signs, a pipe that nobody reads."""

from __future__ import annotations

import codecs
import errno
import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager

from sweeper.errors import ConfigError


class OutputError(ConfigError):
    """Standard output cannot be written to."""


# What tables and sentences hold beyond ASCII, for an encoding that lacks it; the widths stay.
_ASCII = {"Δ": "d", "−": "-", "×": "x", "→": ">", "…": ".", "–": "-", "—": "-", "•": "*", "‘": "'", "’": "'"}


@contextmanager
def usable_streams() -> Iterator[None]:
    """Makes the two streams such that printing cannot fail for their encoding, or for being closed.

    Raises:
        OutputError: what was printed cannot be written, to a full disk say.
    """
    _open_closed()
    codecs.register_error("sweeper", _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="sweeper")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:  # who closed it has read what was wanted
        discard_output()
    except OSError as error:
        if not _concerns_output(error):
            raise
        discard_output()
        raise OutputError(f"standard output cannot be written: {error.strerror}") from None


def discard_output() -> None:
    """Lets what is still to be printed go nowhere: Python would complain about it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed() -> None:
    """A closed stream gets the null device: else the next file that is opened takes its number, and what libraries
    print goes into it."""
    said = sys.stderr is not None
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w")
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w")
        if said:
            print("sweeper: standard output is closed; what would be printed is left out", file=sys.stderr)


def _concerns_output(error: OSError) -> bool:
    """Whether writing to standard output raised it: files that are written say their names."""
    return error.filename is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF)


def _in_ascii(error: UnicodeError) -> tuple[str, int]:
    """What stands for signs that an encoding lacks: the like of ours, the letter without its accent, else `?`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    signs = error.object[error.start : error.end]
    plain = (_ASCII.get(sign) or unicodedata.normalize("NFKD", sign)[0] for sign in signs)
    return "".join(sign if sign.isascii() else "?" for sign in plain), error.end
