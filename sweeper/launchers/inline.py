"""`launcher=inline`: this process runs all cells, one after another."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterator

from sweeper.launchers.launcher import Finished, MakeWorker, Work
from sweeper.sinks.sink import Sink


class InlineLauncher:
    """Runs everything with one worker, which keeps models and references from cell to cell."""

    def launch(self, work: Work, make_worker: MakeWorker, sink: Sink) -> Generator[Finished]:
        unit = work.take()
        if unit is None:
            return
        worker = make_worker(sink)
        with _imports_not_collected():
            while unit is not None:
                for planned in unit.cells:
                    sink.cell_started(planned)
                    yield Finished(*worker.run(planned))
                unit = work.take()


@contextlib.contextmanager
def _imports_not_collected() -> Iterator[None]:
    """Python's garbage collector would look through half a million objects of torch and transformers again and again,
    0.5 s each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
