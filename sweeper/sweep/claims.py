"""Who runs what, where several processes share a folder: a claim is a file that its owner holds locked.

    <sweep>/claims/<key>.lock     locked while its owner lives
    <sweep>/claims/<key>.json     its owner and the cell that it runs; touched all the while

The kernel frees the lock of a process that dies, however it dies, and knows nothing of PID namespaces: on one machine
the lock alone decides, at once. On a file system whose locks do not reach other machines, the note decides beside it:
a claim of another machine counts for `LEASE_S` after it was last touched, by the file system's own clock. Should that
be wrong (a machine that slept), two processes run the same cells, and the second finds that another was first: a claim
saves work, it is not what keeps records whole.
"""

from __future__ import annotations

import contextlib
import os
import threading
import uuid
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel

from sweeper.records.temporary import machine

LEASE_S = 120.0
"""How long a claim of another machine holds without a sign of life."""
BEAT_S = 20.0
"""How often an owner gives one."""


class _Note(BaseModel):
    """What an owner writes down.

    Attributes:
        machine, pid: whose it is.
        held: whether it still is; false where only `deaths` is left to be known.
        cell: the id of the one that runs.
        deaths: cell id -> how many owners ended while they ran it.
    """

    machine: str = ""
    pid: int = 0
    held: bool = False
    cell: str | None = None
    deaths: dict[str, int] = {}


class Claim:
    """What this process alone runs, until it lets go or dies.

    Attributes:
        deaths: cell id -> how many owners before this one ended while they ran it.
    """

    def __init__(self, lock: FileLock, note: Path, deaths: Mapping[str, int]) -> None:
        self._lock = lock
        self._note = note
        self.deaths = dict(deaths)
        self._write(None)

    def running(self, cell_id: str) -> None:
        """Notes which cell runs now: should this process die, it is known of which."""
        self._write(cell_id)

    def ran(self, cell_id: str) -> None:
        """A cell has come to its end. The note still names it, until the next one begins: it has a record by now."""
        self.deaths.pop(cell_id, None)

    def touch(self) -> None:
        """A sign of life, for other machines."""
        with contextlib.suppress(OSError):
            os.utime(self._note)

    def release(self) -> None:
        """Lets go. A note stays only where a cell that has not come to its end has ended processes."""
        with contextlib.suppress(OSError):
            if self.deaths:
                self._write(None, held=False)
            else:
                self._note.unlink(missing_ok=True)
            Path(self._lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits for it looks for the name
        self._lock.release()

    def _write(self, cell_id: str | None, *, held: bool = True) -> None:
        note = _Note(machine=machine(), pid=os.getpid(), held=held, cell=cell_id, deaths=self.deaths)
        new = self._note.with_suffix(".new")  # only the owner writes
        new.write_text(note.model_dump_json() + "\n", encoding="utf-8")
        new.replace(self._note)


class Claims:
    """The claims of a sweep's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "claims"
        self._held: dict[str, Claim] = {}
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    def claim(self, key: str) -> Claim | None:
        """The claim of that name, also of an owner that died; None while another process holds it."""
        self._folder.mkdir(exist_ok=True)
        lock = FileLock(self._folder / f"{key}.lock", thread_local=False)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return None
        except FileNotFoundError:  # the folder went with the last claim of another process
            return None
        note = self._folder / f"{key}.json"
        left = _read(note)
        if left.held and left.machine != machine() and self._age_s(note) < LEASE_S:
            lock.release()
            return None
        deaths = Counter(left.deaths)
        if left.held and left.cell:
            deaths[left.cell] += 1
        self._held[key] = Claim(lock, note, deaths)
        self._beat()
        return self._held[key]

    def held(self, key: str) -> Claim | None:
        """A claim that this process holds."""
        return self._held.get(key)

    def release(self, key: str) -> None:
        """Lets go of a claim, if it is held."""
        if claim := self._held.pop(key, None):
            claim.release()

    def close(self, *, finished: bool) -> None:
        """Lets go of all claims; where the sweep is finished, removes what dead processes left too."""
        self._ended.set()
        for key in list(self._held):
            self.release(key)
        if finished:
            for key in {path.stem for path in self._folder.glob("[!.]*")}:
                if claim := self.claim(key):
                    claim.deaths.clear()
                    self.release(key)
        with contextlib.suppress(OSError):
            self._folder.rmdir()

    def _beat(self) -> None:
        if self._beating is None:
            self._beating = threading.Thread(target=self._touch_all, daemon=True, name="sweeper claims")
            self._beating.start()

    def _touch_all(self) -> None:
        while not self._ended.wait(BEAT_S):
            for claim in list(self._held.values()):
                claim.touch()

    def _age_s(self, note: Path) -> float:
        """How long ago a note was touched, by the clock of the file system: machines' own clocks differ."""
        clock = self._folder / f".clock-{uuid.uuid4().hex}"
        try:
            clock.touch()
            return clock.stat().st_mtime - note.stat().st_mtime
        except FileNotFoundError:
            return 0.0  # it was let go of in between: the next look will tell
        finally:
            clock.unlink(missing_ok=True)


def _read(note: Path) -> _Note:
    """What a note says; nothing where there is none, or none that can be read."""
    try:
        return _Note.model_validate_json(note.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _Note()
