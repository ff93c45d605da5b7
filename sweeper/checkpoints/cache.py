"""The user's cache: a folder appears in it complete or not at all, and two processes never build the same one.

    <cache>/checkpoints/<key>/     a finished checkpoint
    <cache>/downloads/<sha256>     the verified source of one that is being converted, or that a user laid there
    <cache>/locks/<key>.lock

`SWEEPER_CACHE` moves it; the default is the platform's own place for caches. Deleting any of it is safe.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from sweeper.errors import CheckpointError


def root() -> Path:
    """The cache folder: `$SWEEPER_CACHE`, else the platform's."""
    override = os.environ.get("SWEEPER_CACHE")
    return Path(override).expanduser().resolve() if override else user_cache_path("sweeper")


def download_path(sha256: str) -> Path:
    """The place of a verified source until it is converted."""
    return _made(root() / "downloads") / sha256


def build_once(key: str, build: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    """The folder `checkpoints/<key>`; `build(empty_folder)` fills it if it is not there yet.

    It is built beside its place and renamed, so a killed run leaves nothing that looks finished. Another process that
    wants the same key waits for this one.

    Raises:
        CheckpointError: the cache cannot be written to.
    """
    finished = _made(root() / "checkpoints") / key
    if finished.is_dir():
        return finished
    with _locked(key, say):
        if not finished.is_dir():  # else another process finished it while this one waited
            with scratch(finished.with_name(f"{key}.partial")) as partial:
                build(partial)
                partial.rename(finished)
    return finished


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """An empty folder, gone at the end. What a killed run left of it is cleared first; the caller holds the lock."""
    discard(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        discard(folder)


def discard(path: Path) -> None:
    """Removes a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def _locked(key: str, say: Callable[[str], None]) -> Iterator[None]:
    lock = FileLock(_made(root() / "locks") / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"another process is preparing {key}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or error
        raise CheckpointError(
            f"cannot make {folder}: {reason}; set SWEEPER_CACHE to a folder that you can write to"
        ) from None
    return folder
