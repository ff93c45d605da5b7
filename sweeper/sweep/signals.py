"""How a sweep is stopped: Ctrl-C and SIGTERM end it in good order, a second one ends it at once."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stopping_signals() -> Iterator[None]:
    """Makes the first of these signals a KeyboardInterrupt, whichever it is; the next one ends the process.

    Python looks at a signal only between two of its own steps, and a forward can take minutes: a thread that hears of
    them from the kernel ends the process. A signal that is ignored (`nohup`, a shell's background job) stays ignored.
    """
    handled = [number for number in _STOPPING if signal.getsignal(number) not in (signal.SIG_IGN, None)]
    if threading.current_thread() is not threading.main_thread() or not handled:
        yield
        return
    heard, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    before = {number: signal.signal(number, _interrupt) for number in handled}
    earlier_wakeup = signal.set_wakeup_fd(wakeup, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_the_second, args=(heard,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(earlier_wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(wakeup)  # ends the thread


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end_at_the_second(heard: int) -> None:
    """Reads the numbers of signals as they come, until the pipe is closed."""
    count = 0
    while numbers := os.read(heard, 64):
        count += sum(number in _STOPPING for number in numbers)
        if count > 1:
            os._exit(INTERRUPTED)
    os.close(heard)
