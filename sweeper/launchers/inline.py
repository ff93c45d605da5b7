"""`launcher=inline`: this process runs all cells, one after another."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Generator, Iterator, Sequence

from sweeper.launchers.launcher import Finished, MakeWorker, Unit
from sweeper.sinks.sink import Sink


class InlineLauncher:
    """Runs everything with one worker, which keeps models and references from cell to cell."""

    def launch(self, units: Sequence[Unit], make_worker: MakeWorker, sink: Sink) -> Generator[Finished]:
        worker = make_worker(sink)
        with _imports_not_collected():
            for planned in (planned for unit in units for planned in unit.cells):
                sink.cell_started(planned)
                yield Finished(*worker.run(planned))


@contextlib.contextmanager
def _imports_not_collected() -> Iterator[None]:
    """Python's garbage collector would look through half a million objects of torch and transformers again and again,
    0.5 s each time."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
