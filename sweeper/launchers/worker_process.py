"""A process that runs cells one after another and keeps what they share, and what is heard of it.

Light to import: the command line starts workers before it has composed what they will do.
"""

from __future__ import annotations

import contextlib
import gc
import glob
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from types import MappingProxyType
from typing import TYPE_CHECKING

from sweeper.launchers.collector import collect_seldom
from sweeper.launchers.ready import make_ready

if TYPE_CHECKING:
    from sweeper.launchers.launcher import MakeWorker
    from sweeper.launchers.messages import Message
    from sweeper.planning.plan import PlannedCell

VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

_SLOW: Mapping[str, Sequence[str]] = MappingProxyType({"": ("torch", "transformers")})
_started_early: list[WorkerProcess] = []


def start_early(arguments: Sequence[str], needed: Mapping[str, Sequence[str]]) -> None:
    """Starts the workers that a command line will want, while its request is composed: both take seconds, most of them
    for importing torch. Where it guesses too few, the launcher starts more; where too many, it ends the rest.

    Args:
        needed: what cells import, by device: the workers have it imported when the plan is made.
    """
    given = dict(word.partition("=")[::2] for word in arguments)
    if given.get("dry_run") == "true" or _started_early:
        return
    count = 0
    if given.get("launcher") == "gpus":
        named = os.environ.get(VISIBLE_GPUS)
        gpus = len(named.split(",")) if named is not None else len(glob.glob("/dev/nvidia[0-9]*"))
        workers = given.get("launcher.workers", "")
        count = int(workers) if workers.isdecimal() else gpus
    elif given.get("isolation") == "process":
        count = 1
    _started_early.extend(WorkerProcess(needed) for _ in range(min(count, os.cpu_count() or 1)))


def end_early() -> None:
    """Ends those that were started early and that nobody has taken."""
    while _started_early:
        _started_early.pop().kill()


def worker_process(environment: Mapping[str, str], device: str | None = None) -> WorkerProcess:
    """A process that was started early, or a new one.

    Args:
        environment: variables that it sets before it makes its worker, and so before it touches a GPU.
        device: what it may make ready meanwhile; None where it gets its work at once.
    """
    process = _started_early.pop() if _started_early else WorkerProcess()
    process.place(environment, device)
    return process


class WorkerProcess:
    """Starts at once, spawned: it shares nothing with this process, and nothing that breaks in it breaks here.

    Args:
        needed: device -> what it imports while it waits for work; under no name, what it does before it has a device.
    """

    def __init__(self, needed: Mapping[str, Sequence[str]] = _SLOW) -> None:
        spawn = get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, dict(needed)), daemon=True)
        self._process.start()
        theirs.close()
        self._is_made = False

    def place(self, environment: Mapping[str, str], device: str | None) -> None:
        """Tells it its variables and its device, once and before all else."""
        self._send((dict(environment), device))

    @property
    def ears(self) -> Connection:
        """Ready to be read where it has said something, or ended."""
        return self._connection

    def run(self, make_worker: MakeWorker, cells: Sequence[PlannedCell], *, together: bool) -> None:
        """Gives it cells to run, in their order; `together` as for `Speaker.run`."""
        if not self._is_made:
            self._send(make_worker)
            self._is_made = True
        self._send((tuple(cells), together))

    def heard(self) -> Iterator[Message]:
        """All that it has said by now.

        Raises:
            EOFError: after the last message of a process that has ended.
        """
        try:
            while self._connection.poll():
                yield pickle.loads(self._connection.recv_bytes())
        except OSError:
            raise EOFError from None

    def _send(self, what: object) -> None:
        with contextlib.suppress(OSError):  # it has ended: who listens hears of it
            self._connection.send_bytes(pickle.dumps(what))

    def ended(self) -> str:
        """How a process ended that has said its last: `signal 11 (SIGSEGV)`, `exit code 1`."""
        self._process.join(timeout=10)  # after the pipe, the process itself
        self.kill()
        return how_it_ended(self._process.exitcode or 0)

    def stop(self) -> None:
        """Ends it, wherever it is, without waiting until it has."""
        self._process.kill()

    def kill(self) -> None:
        """Ends it, wherever it is."""
        self.stop()
        self._process.join()
        self._connection.close()


def how_it_ended(exit_code: int) -> str:
    """An exit code of `multiprocessing`, in words."""
    if exit_code >= 0:
        return f"exit code {exit_code}"
    try:
        return f"signal {-exit_code} ({signal.Signals(-exit_code).name})"
    except ValueError:
        return f"signal {-exit_code}"


def from_outside(ended: str) -> bool:
    """Whether a process that ended so was ended by another one: a user, or the kernel where memory ran out."""
    return "SIGKILL" in ended or "SIGTERM" in ended


def _serve(connection: Connection, needed: Mapping[str, Sequence[str]]) -> None:
    """What the process does: makes a worker, runs what it is given, and ends when nobody is there to give more."""
    collect_seldom()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends us
    threading.Thread(target=_end_with_parent, daemon=True).start()
    make_ready("", needed.get("", ()))

    from sweeper.launchers.messages import CannotStart, Speaker

    def say(message: Message) -> None:
        connection.send_bytes(pickle.dumps(message))

    with contextlib.suppress(EOFError, OSError):
        environment, device = pickle.loads(connection.recv_bytes())
        os.environ.update(environment)
        if device is not None:
            make_ready(device, needed.get(device, ()))
        making = connection.recv_bytes()
        try:
            speaker = Speaker(pickle.loads(making), say)
        except Exception as error:
            say(CannotStart(f"no worker could be made: {type(error).__name__}: {error}".splitlines()[0]))
            traceback.print_exc()
            sys.exit(1)
        gc.freeze()  # as `InlineLauncher` does
        usable = True
        while usable:
            cells, together = pickle.loads(connection.recv_bytes())
            usable = speaker.run(cells, together=together)


def _end_with_parent() -> None:
    """A process whose parent was killed has nobody to run cells for."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
