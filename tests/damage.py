"""Kinds of damage to a file, as a disk, a copy that was cut short, or another program leaves it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path


def flip(path: Path, place: float = 0.5) -> None:
    """Turns one bit over, and leaves size and time of change as they were."""
    import os

    before, data = path.stat(), bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 99, "a_field_of_tomorrow": 1}))
    path.with_name("SHA256SUMS").unlink(missing_ok=True)  # a newer version need not write it


def _into_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


ANY_FILE: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "without its last byte": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 8),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "one bit": flip,
    "a folder": _into_folder,
    "a link to nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
}
"""Name -> what it does to a file of which the hash is kept."""

JSON_FILE: dict[str, Callable[[Path], object]] = {
    "newer": _newer,
    "a list": lambda path: path.write_text("[]"),
    "deep": lambda path: path.write_text("[" * 100_000),
    "UTF-16": lambda path: path.write_text(path.read_text(), encoding="utf-16"),
    "a field too many": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"more": 1})),
}
"""Name -> what it does to a JSON file, beside the above."""

WHOLE_FOLDER: dict[str, Callable[[Path], object]] = {
    "emptied": lambda folder: [path.unlink() for path in folder.iterdir()],
    "a file": lambda folder: (shutil.rmtree(folder), folder.write_text("")),
    "of another cell": lambda folder: folder.joinpath("cell.json").write_text(
        folder.joinpath("cell.json").read_text().replace(folder.name, "0" * 12)
    ),
}
"""Name -> what it does to a cell's folder."""
