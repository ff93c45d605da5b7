"""What cells hold in common before anything runs: checkpoints, models, token ids, and what was computed of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from torch import nn

from sweeper.checkpoints import LocalCheckpoint, Prepared
from sweeper.comparator.forwards import read_texts
from sweeper.config import Cell, Checkpoint, Inputs, Weights
from sweeper.inputs.texts import Reading
from sweeper.models.fingerprint import model_fingerprint
from sweeper.models.loading import LoadedModel, ModelPool, SpreadPool
from sweeper.models.state import StateEntry, compare_state, state_of
from sweeper.models.streaming import StreamedPool
from sweeper.models.weights import WeightsKey
from sweeper.records.cell import StateFigures

POOLS: dict[Weights, type[ModelPool]] = {"resident": ModelPool, "streamed": StreamedPool, "spread": SpreadPool}


class Held:
    """Each checkpoint is prepared once, each model loaded once while there is room, and texts are read once.

    Args:
        weights: as in `Runner`.
        say: takes one line of progress.
    """

    def __init__(self, weights: Weights, say: Callable[[str], None]) -> None:
        self._checkpoints = Prepared(say)
        self._pool: ModelPool = POOLS[weights]()
        self._read_ahead: set[WeightsKey] = set()  # models that were read before their cell's turn
        self._read: tuple[tuple[Inputs, Checkpoint], Reading] | None = None
        self._states: dict[tuple[WeightsKey, WeightsKey], StateFigures] = {}
        self._fingerprints: dict[WeightsKey, str] = {}

    @property
    def streamed(self) -> bool:
        """Whether parameters are read as they are used, so that none is in memory."""
        return isinstance(self._pool, StreamedPool)

    @contextlib.contextmanager
    def streaming(self) -> Iterator[None]:
        """Other models, which are streamed, for as long as the context lasts."""
        resident, self._pool = self._pool, StreamedPool()
        try:
            yield
        finally:
            self._pool = resident

    def forget(self) -> None:
        """Lets go of all that takes memory."""
        self._pool.clear()
        self._states.clear()

    def local(self, cell: Cell) -> LocalCheckpoint:
        """The cell's checkpoint as a folder."""
        return self._checkpoints.of(cell.checkpoint, cell.device)

    def load(self, cell: Cell) -> tuple[LoadedModel, bool]:
        """The cell's model, with its attention backend; and whether it was read for that."""
        return self._pool.get(cell, self.local(cell).folder)

    def loaded(self, cell: Cell) -> LoadedModel:
        """The cell's model, with its attention backend."""
        return self.load(cell)[0]

    def loaded_ahead(self, cell: Cell) -> LoadedModel | None:
        """The model of a cell whose turn has not come; None where another one would have to go."""
        if not self._pool.room_beside(cell, self.local(cell).folder):
            return None
        loaded, was_read = self.load(cell)
        if was_read:
            self._read_ahead.add(loaded.key)
        return loaded

    def was_read_ahead(self, loaded: LoadedModel) -> bool:
        """Whether the model was read before its cell's turn: said to the first that asks."""
        was_read = loaded.key in self._read_ahead
        self._read_ahead.discard(loaded.key)
        return was_read

    def keep(self, cell: Cell) -> None:
        """Counts the cell's model as used just now, so that others go first."""
        self._pool.keep(cell)

    def reading(self, cell: Cell, model: nn.Module) -> Reading:
        """What the cell reads; a sweep's cells mostly read the same."""
        key = cell.inputs, cell.checkpoint
        if self._read is None or self._read[0] != key:
            self._read = key, read_texts(cell, self.local(cell), model)
        return self._read[1]

    def token_ids(self, cell: Cell, model: nn.Module) -> list[list[int]]:
        """Those of all texts that the cell reads."""
        return self.reading(cell, model).token_ids

    def fingerprint(self, loaded: LoadedModel) -> str:
        """The fingerprint of a model that the pool keeps, taken once."""
        if loaded.key not in self._fingerprints:
            self._fingerprints[loaded.key] = model_fingerprint(loaded.model)
        return self._fingerprints[loaded.key]

    def compare_state(self, weights: WeightsKey, state: dict[str, StateEntry], candidate: LoadedModel) -> StateFigures:
        """How the candidate's parameters and buffers differ from a reference's, of these weights, with this state."""
        key = (weights, candidate.key)
        if key not in self._states:
            self._states[key] = compare_state(state, state_of(candidate.model))
        return self._states[key]
