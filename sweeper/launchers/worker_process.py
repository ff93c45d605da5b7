"""A process that runs cells one after another and keeps what they share, and what is heard of it."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait

from sweeper.launchers.launcher import MakeWorker
from sweeper.launchers.messages import Message, Speaker
from sweeper.planning.plan import PlannedCell


class WorkerProcess:
    """Starts at once, spawned: it shares nothing with this process, and nothing that breaks in it breaks here.

    Args:
        environment: variables that it sets before it imports torch.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        spawn = get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, dict(environment)), daemon=True)
        self._process.start()
        theirs.close()
        self._is_made = False

    @property
    def ears(self) -> Connection:
        """Ready to be read where it has said something, or ended."""
        return self._connection

    def run(self, make_worker: MakeWorker, cells: Sequence[PlannedCell]) -> None:
        """Gives it cells to run, in their order."""
        try:
            if not self._is_made:
                self._connection.send_bytes(pickle.dumps(make_worker))
                self._is_made = True
            self._connection.send_bytes(pickle.dumps(tuple(cells)))
        except OSError:
            return  # it has ended: who listens hears of it

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

    def ended(self) -> str:
        """How a process ended that has said its last: `signal 11 (SIGSEGV)`, `exit code 1`."""
        self._process.join(timeout=10)  # after the pipe, the process itself
        self.kill()
        return how_it_ended(self._process.exitcode or 0)

    def kill(self) -> None:
        """Ends it, wherever it is."""
        self._process.kill()
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


def _serve(connection: Connection, environment: dict[str, str]) -> None:
    """What the process does: makes a worker, runs what it is given, and ends when nobody is there to give more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends us
    os.environ.update(environment)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import torch  # noqa: F401 (seconds, while the first process plans)
    import transformers  # noqa: F401

    def say(message: Message) -> None:
        connection.send_bytes(pickle.dumps(message))

    try:
        speaker = Speaker(pickle.loads(connection.recv_bytes()), say)
        gc.freeze()  # as `InlineLauncher` does
        while speaker.run(pickle.loads(connection.recv_bytes())):
            pass
    except (EOFError, OSError):
        return


def _end_with_parent() -> None:
    """A process whose parent was killed has nobody to run cells for."""
    parent = parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
