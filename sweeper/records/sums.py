"""SHA256SUMS in a cell's folder: whether its files are what was written. `sha256sum -c` reads the same file."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from sweeper.errors import DamagedError

SUMS_FILE = "SHA256SUMS"


def sums_of(files: Mapping[str, bytes]) -> bytes:
    """The content of `SHA256SUMS`: a line a file."""
    return "".join(f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()).encode()


def read_checked(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The files of a folder, each as its line in `SHA256SUMS` says.

    A folder without `SHA256SUMS` was written before there was one: its files are given as they are.

    Raises:
        DamagedError: one of them is missing, empty, cannot be read, or is not what was written.
    """
    sums = _sums(folder / SUMS_FILE)
    files = {}
    for name in names:
        path = folder / name
        data = read_bytes(path)
        if sums is not None and hashlib.sha256(data).hexdigest() != sums.get(name):
            raise DamagedError(f"{path}: is not what was written: its SHA-256 is another than {SUMS_FILE} has")
        files[name] = data
    return files


def names_in(folder: Path) -> set[str]:
    """The files that `SHA256SUMS` names; none without it."""
    return set(_sums(folder / SUMS_FILE) or ())


def read_bytes(path: Path) -> bytes:
    """A file that holds something.

    Raises:
        DamagedError: it is missing, empty, or cannot be read.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DamagedError(f"{path}: is missing") from None
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read: {error.strerror}") from None
    if not data:
        raise DamagedError(f"{path}: is empty")
    return data


def _sums(path: Path) -> dict[str, str] | None:
    if not path.exists():
        return None
    lines = read_bytes(path).decode(errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
