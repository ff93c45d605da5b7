"""The user's cache: a folder appears in it complete or not at all, and two processes never build the same one.

    <cache>/checkpoints/<key>/     a finished checkpoint
    <cache>/hashes/<key>.json      of its files: they are looked at before each use
    <cache>/downloads/<sha256>     the verified source of one that is being converted, or that a user laid there
    <cache>/locks/<key>.lock

`SWEEPER_CACHE` moves it; the default is the platform's own place for caches. Deleting any of it is safe.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from sweeper.checkpoints import hashes
from sweeper.errors import CheckpointError


def root() -> Path:
    """The cache folder: `$SWEEPER_CACHE`, else the platform's."""
    override = os.environ.get("SWEEPER_CACHE")
    return Path(override).expanduser().resolve() if override else user_cache_path("sweeper")


def download_path(sha256: str) -> Path:
    """The place of a verified source until it is converted."""
    return _made(root() / "downloads") / sha256


def hashes_path(name: str) -> Path:
    """The place of the hashes of a checkpoint's files."""
    return root() / "hashes" / f"{name}.json"


def build_once(key: str, build: Callable[[Path], None], say: Callable[[str], None]) -> Path:
    """The folder `checkpoints/<key>`; `build(empty_folder)` fills it if it is not there yet, or not what was built.

    It is built beside its place and renamed, so a killed run leaves nothing that looks finished. Another process that
    wants the same key waits for this one.

    Raises:
        CheckpointError: the cache cannot be written to.
    """
    finished = _made(root() / "checkpoints") / key
    if finished.is_dir() and damage(finished) is None and hashes_path(key).exists():
        return finished
    with _locked(key, say):  # another process may have finished it while this one waited
        wrong = damage(finished) if finished.is_dir() else f"{finished}: is no folder"
        if wrong is None:
            _keep_first_hashes(finished, say)
            return finished
        if os.path.lexists(finished):
            say(f"{wrong}; it is prepared again")
        with scratch(finished.with_name(f"{key}.partial")) as partial:
            build(partial)
            for old in (finished, hashes_path(key)):
                discard(old)
            hashes.keep(hashes_path(key), hashes.hash_files(partial, hashes.files_in(partial), links=True))
            partial.rename(finished)
    return finished


def prepared() -> list[Path]:
    """Every finished checkpoint whose hashes are kept."""
    folders = sorted((root() / "checkpoints").glob("*"))
    return [folder for folder in folders if folder.is_dir() and hashes_path(folder.name).exists()]


def damage(prepared: Path, *, again: bool = False) -> str | None:
    """What is not as it was built in a finished checkpoint, with the path; None where all is, or nothing is known.

    Args:
        prepared: its folder in the cache.
        again: hash every file, not only those of another size or time of change.
    """
    at = hashes_path(prepared.name)
    try:
        kept = hashes.read_kept(at)
    except ValueError as error:
        return str(error)
    if kept is None:
        return None
    try:
        now = hashes.hash_files(prepared, hashes.files_in(prepared), kept, again=again, links=True)
    except CheckpointError as error:
        return str(error)
    changed = hashes.change(kept, now)
    if changed is not None:
        return f"{prepared}/{changed}"
    if now != kept:
        with contextlib.suppress(OSError):  # only time is lost where it cannot be kept
            hashes.keep(at, now)
    return None


def files_digest(prepared: Path) -> str:
    """One hash for all files of a finished checkpoint."""
    kept = hashes.read_kept(hashes_path(prepared.name))
    return (kept or hashes.hash_files(prepared, hashes.files_in(prepared), links=True)).digest


def _keep_first_hashes(finished: Path, say: Callable[[str], None]) -> None:
    """Hashes a checkpoint that an older version prepared, and keeps the hashes."""
    if not hashes_path(finished.name).exists():
        say(f"{finished} has no hashes yet: its files are taken as they are, and watched from now on")
        with contextlib.suppress(OSError):
            hashes.keep(hashes_path(finished.name), hashes.hash_files(finished, hashes.files_in(finished), links=True))


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
