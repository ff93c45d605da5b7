"""What is learned once for all cells that run the same code: the numbers in the weights do not decide it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from sweeper.comparator.forwards import run_forwards, small_call, steady_outputs
from sweeper.comparator.side import Call
from sweeper.config import Cell, Compile
from sweeper.models import axes
from sweeper.models.attention import record_kernels
from sweeper.models.backends import BACKENDS
from sweeper.models.checks import without_effect_on
from sweeper.models.loading import LoadedModel
from sweeper.models.weights import WeightsKey


def is_compiled(cell: Cell) -> bool:
    """Whether torch compiles the cell's code, or a part of it, at its first forward."""
    return BACKENDS[cell.attention].compiled or cell.compile is not Compile.OFF


class CodePaths:
    """Remembers, for one process, which outputs are overwritten and which kernels run in the attention."""

    def __init__(self) -> None:
        self._steady: dict[tuple[Hashable, ...], frozenset[str]] = {}
        self._without_effect: dict[tuple[Hashable, ...], dict[str, str]] = {}
        self._kernels: dict[tuple[Hashable, ...], tuple[str, ...]] = {}
        self._dtypes: dict[WeightsKey, tuple[torch.dtype, ...]] = {}

    def steady(self, cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> frozenset[str]:
        """The modules that `steady_outputs` finds, learned once for all cells that run the same code."""
        key = axes.parts("code", cell)
        if key not in self._steady:
            self._steady[key] = steady_outputs(cell, model, token_ids)
        return self._steady[key]

    def without_effect(self, cell: Cell, model: nn.Module, token_ids: list[list[int]]) -> dict[str, str]:
        """What `checks.without_effect_on` finds, learned once; to be called in the cell's conditions."""
        key = axes.parts("code", cell), axes.parts("conditions", cell)
        if key not in self._without_effect:
            self._without_effect[key] = without_effect_on(model, small_call(cell, model, token_ids), cell)
        return self._without_effect[key]

    @contextmanager
    def learning_kernels(self, cell: Cell, loaded: LoadedModel) -> Iterator[None]:
        """Profiles a forward of the first batch, and of no other model, where nothing is known of its like.

        Not where something may be compiled in it.
        """
        if self.knows_kernels(cell, loaded) or is_compiled(cell):
            yield
            return
        with self._profile(cell, loaded):
            yield

    def kernels(self, cell: Cell, loaded: LoadedModel, batch: Sequence[Call]) -> tuple[str, ...]:
        """What runs in the attention, by a forward of its own where no other has told. Call it warm."""
        if not self.knows_kernels(cell, loaded):
            with self._profile(cell, loaded):
                run_forwards(loaded.model, batch)
        return self._kernels[self._kernels_key(cell, loaded)]

    def knows_kernels(self, cell: Cell, loaded: LoadedModel) -> bool:
        """Whether `kernels` runs nothing."""
        return self._kernels_key(cell, loaded) in self._kernels

    @contextmanager
    def _profile(self, cell: Cell, loaded: LoadedModel) -> Iterator[None]:
        with record_kernels(cell.device) as kernels:
            yield
        self._kernels[self._kernels_key(cell, loaded)] = tuple(kernels)

    def _kernels_key(self, cell: Cell, loaded: LoadedModel) -> tuple[Hashable, ...]:
        """The code, the settings around it, all dtypes and all shapes."""
        if loaded.key not in self._dtypes:
            state = [*loaded.model.parameters(), *loaded.model.buffers()]
            self._dtypes[loaded.key] = tuple(tensor.dtype for tensor in state)
        decides = (axes.parts("code", cell), axes.parts("conditions", cell))
        return (*decides, cell.inputs, self._dtypes[loaded.key])
