"""Hashes of a checkpoint's files, kept so that a file which has changed since is found before it is measured.

A file whose size and time of change are those that were kept is taken to have the hash that was kept; any other is
hashed again. `again=True` hashes all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from sweeper.errors import CheckpointError
from sweeper.records.store import write_whole


class FileHash(BaseModel):
    """One file as it was when it was hashed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    mtime_ns: int
    sha256: str


class Kept(BaseModel):
    """`hashes/<name>.json` in the cache: a checkpoint's files by their paths inside of its folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, FileHash]

    @property
    def digest(self) -> str:
        """One hash for all: what `sha256sum FILE ... | sha256sum` prints of the files in the order of their names."""
        return digest_of({name: file.sha256 for name, file in self.files.items()})


def digest_of(sha256s: Mapping[str, str]) -> str:
    """The hash of the lines that `sha256sum` prints of these files."""
    lines = [f"{sha256s[name]}  {name}\n" for name in sorted(sha256s)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def read_kept(path: Path) -> Kept | None:
    """What was kept; None where nothing was.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        return Kept.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        raise ValueError(f"{path}: cannot be read: {type(error).__name__}") from None


def keep(path: Path, kept: Kept) -> None:
    """Writes hashes, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, kept.model_dump_json(indent=1) + "\n")


def hash_files(
    folder: Path, names: Iterable[str], known: Kept | None = None, *, again: bool = False, links: bool = False
) -> Kept:
    """The hashes of files in a folder.

    Args:
        folder: where they lie.
        names: paths inside of it.
        known: what is hashed already.
        again: hash all the same.
        links: of a link, hash where it leads, and not what lies there, which is somebody else's.

    Raises:
        CheckpointError: a file cannot be read.
    """
    before = {} if known is None or again else known.files
    files = {}
    for name in sorted(names):
        path = folder / name
        try:
            stat = path.lstat() if links else path.stat()
            file = before.get(name)
            if file is None or (file.size, file.mtime_ns) != (stat.st_size, stat.st_mtime_ns):
                file = FileHash(size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_of(path, link=links))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
        files[name] = file
    return Kept(files=files)


def files_in(folder: Path) -> list[str]:
    """Every file in a folder and below, by its path inside of it."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]


def change(kept: Kept, now: Kept) -> str | None:
    """The first file that is not what it was, with what is wrong with it; None where all are."""
    for name in sorted({*kept.files, *now.files}):
        if name not in now.files:
            return f"{name} is missing"
        if name not in kept.files:
            return f"{name} was not there"
        if kept.files[name].sha256 != now.files[name].sha256:
            return f"{name} has SHA-256 {now.files[name].sha256[:12]}..., it had {kept.files[name].sha256[:12]}..."
    return None


def sha256_of(path: Path, *, link: bool = False) -> str:
    """Reads the whole file; of a link, if asked for, its target's name."""
    if link and path.is_symlink():
        return hashlib.sha256(str(path.readlink()).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
