"""The runs in a sweep's folder: which are finished, which a process left that died, who writes which.

Several processes may share a sweep. Each that writes runs holds a lock for as long as it lives, and keeps the ids of
its runs beside it: the kernel frees the lock, so that what a dead one left half-written is known for that.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import struct
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

_BLOCK_BYTES, _HEADER_BYTES = 32 * 1024, 7  # LevelDB's log, in which wandb writes its records
_FULL, _FIRST, _LAST = 1, 2, 4
_LAST_RECORDS = 8  # among which the one of the exit is
_NAME = re.compile(r"(offline-)?run-\d{8}_\d{6}-(.+)")


class RunsFolder:
    """`<sweep>/wandb`.

    Args:
        folder: the sweep's.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder / "wandb"
        self._complete: set[Path] = set()
        self._writer: FileLock | None = None

    @contextmanager
    def claimed(self, run_id: str, obsolete: str = "") -> Iterator[bool]:
        """Whether the run is this process's to write: it is not finished, and no living process writes it.

        What a dead process left of it is removed, and so are finished runs that it takes the place of.

        Args:
            run_id: of the run.
            obsolete: what the ids of runs begin with that it takes the place of, as far as they were not uploaded.
        """
        self._root.mkdir(exist_ok=True)
        with FileLock(self._root / ".lock"):
            mine = not self._is_taken(run_id)
            if mine:
                self._remove_old(run_id, obsolete)
                self._note(run_id)
        yield mine

    def _is_taken(self, run_id: str) -> bool:
        return run_id in self._noted() or any(self._is_complete(path) for path in self._of(run_id))

    def _of(self, prefix: str, *, whole: bool = True) -> list[Path]:
        """The folders of the runs whose id is, or begins with, this."""
        found = []
        for path in self._root.glob(f"*run-*-{prefix}*"):
            name = _NAME.fullmatch(path.name)
            if name and (name[2] == prefix if whole else name[2].startswith(prefix)) and not path.is_symlink():
                found.append(path)
        return found

    def _is_complete(self, run: Path) -> bool:
        if run not in self._complete and is_finished(run):
            self._complete.add(run)
        return run in self._complete

    def _remove_old(self, run_id: str, obsolete: str) -> None:
        kept = self._noted()
        for run in {*self._of(run_id), *(self._of(obsolete, whole=False) if obsolete else [])}:
            uploaded = run.name.startswith("run-") or any(run.glob("*.synced"))
            if not uploaded and not any(run.name.endswith(f"-{writing}") for writing in kept):
                shutil.rmtree(run)
                for table in (self._root / "tables").glob(f"{_NAME.fullmatch(run.name)[2]}-*"):  # type: ignore[index]
                    table.unlink()

    def _note(self, run_id: str) -> None:
        with self._own().with_suffix(".ids").open("a") as ids:
            ids.write(f"{run_id}\n")

    def _own(self) -> Path:
        """The path of this process's lock, which it holds from then on."""
        if self._writer is None:
            writers = self._root / "writers"
            writers.mkdir(exist_ok=True)
            self._writer = FileLock(writers / f"{uuid.uuid4().hex}.lock")
            self._writer.acquire()
        return Path(self._writer.lock_file)

    def scratch(self) -> Path:
        """A folder of this process for what wandb lays down on its way; gone when the writing ends."""
        folder = self._own().with_suffix(".data")
        folder.mkdir(exist_ok=True)
        return folder

    def _noted(self) -> set[str]:
        """The ids that living processes have taken, this one too; those of dead ones are forgotten."""
        found: set[str] = set()
        for ids in (self._root / "writers").glob("*.ids"):
            at = ids.with_suffix(".lock")
            own = self._writer is not None and Path(self._writer.lock_file) == at
            if own or _is_held(at):
                with contextlib.suppress(FileNotFoundError):  # it ended in between: its runs are finished
                    found |= set(ids.read_text().split())
            else:
                _forget(at)
        return found

    def close(self, wait_s: float = 10.0) -> None:
        """Ends the writing, once what was written is on disk: wandb's service writes on behind `finish`."""
        if self._writer is not None:
            at = Path(self._writer.lock_file)
            ends = time.monotonic() + wait_s
            for run in [run for run_id in at.with_suffix(".ids").read_text().split() for run in self._of(run_id)]:
                offline = run.name.startswith("offline-")  # another may have been given up
                while offline and not self._is_complete(run) and time.monotonic() < ends:
                    time.sleep(0.02)
            self._writer.release()
            _forget(at)
            self._writer = None


def _forget(lock: Path) -> None:
    """Removes what a writer that ended kept."""
    shutil.rmtree(lock.with_suffix(".data"), ignore_errors=True)
    for path in (lock.with_suffix(".ids"), lock):
        path.unlink(missing_ok=True)


def _is_held(path: Path) -> bool:
    try:
        with FileLock(path, timeout=0):
            return False
    except Timeout:
        return True


def is_finished(run: Path) -> bool:
    """Whether a run's file ends as a run that was closed does; its exit code does not matter."""
    from wandb.proto import wandb_internal_pb2 as pb

    for path in run.glob("*.wandb"):
        for message in list(messages(path.read_bytes()))[-_LAST_RECORDS:]:
            record: Any = pb.Record()
            record.ParseFromString(message)
            if record.WhichOneof("record_type") == "exit":
                return True
    return False


def messages(data: bytes) -> Iterator[bytes]:
    """The records of a `.wandb` file, as far as they are whole.

    A header of 7 bytes, then blocks of 32 KiB; each holds chunks with a header of 7 bytes (crc, length, type), and the
    chunks of one record join to a message.
    """
    position, message = _HEADER_BYTES, b""
    while position + _HEADER_BYTES <= len(data):
        left_in_block = _BLOCK_BYTES - position % _BLOCK_BYTES
        if left_in_block < _HEADER_BYTES:
            position += left_in_block
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        start = position + _HEADER_BYTES
        position = start + length
        if (kind == 0 and length == 0) or position > len(data):
            return
        chunk = data[start:position]
        message = chunk if kind in (_FULL, _FIRST) else message + chunk
        if kind in (_FULL, _LAST):
            yield message
