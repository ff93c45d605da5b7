"""What is learned once for all cells that run the same code: the numbers in the weights do not decide it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import nn

from sweeper.comparator.forwards import run_forwards, small_call, steady_outputs
from sweeper.comparator.side import Call
from sweeper.config import Cell, Compile
from sweeper.models import axes
from sweeper.models.attention import record_kernels
from sweeper.models.backends import BACKENDS
from sweeper.models.checks import without_effect_on
from sweeper.models.kinds import run_one_of_each_kind
from sweeper.models.loading import LoadedModel
from sweeper.models.swapping import is_streamed
from sweeper.models.weights import WeightsKey
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import Cost


def is_compiled(cell: Cell) -> bool:
    """Whether torch compiles the cell's code, or a part of it, at its first forward."""
    return BACKENDS[cell.attention].compiled or cell.compile is not Compile.OFF


class CodePaths:
    """Remembers for one process which outputs are overwritten, what has no effect, which kernels run, what it costs."""

    def __init__(self) -> None:
        self._steady: dict[tuple[Hashable, ...], frozenset[str]] = {}
        self._without_effect: dict[tuple[Hashable, ...], dict[str, str]] = {}
        self._kernels: dict[tuple[Hashable, ...], tuple[str, ...]] = {}
        self._costs: dict[tuple[Hashable, ...], tuple[str, Cost]] = {}
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

    def kernels(self, cell: Cell, loaded: LoadedModel, batch: Sequence[Call]) -> tuple[str, ...]:
        """What runs in the attention of the first batch."""
        key = self._key(cell, loaded)
        if key not in self._kernels:
            if is_compiled(cell):  # compiling runs kernels that are not the model's
                run_forwards(loaded.model, batch)
            with record_kernels(cell.device) as found:
                _run_what_differs(cell, loaded.model, batch)
            self._kernels[key] = tuple(found)
        return self._kernels[key]

    def cost(self, planned: PlannedCell, loaded: LoadedModel, measure: Callable[[], Cost]) -> Cost:
        """What bare forwards cost, measured by the first cell of its like; the others name that one."""
        # where memory ran out, one cell is streamed among others that are not
        key = (*self._key(planned.cell, loaded), is_streamed(loaded.model))
        if key not in self._costs:
            self._costs[key] = planned.cell_id, measure()
        measured_in, cost = self._costs[key]
        return cost if measured_in == planned.cell_id else cost.model_copy(update={"measured_in": measured_in})

    def forget_cost(self, cell_id: str) -> None:
        """A cell that failed behind its measurement has no cost in its record for others to name."""
        self._costs = {key: cost for key, cost in self._costs.items() if cost[0] != cell_id}

    def _key(self, cell: Cell, loaded: LoadedModel) -> tuple[Hashable, ...]:
        """The code, the settings around it, all dtypes and all shapes."""
        if loaded.key not in self._dtypes:
            state = [*loaded.model.parameters(), *loaded.model.buffers()]
            self._dtypes[loaded.key] = tuple(tensor.dtype for tensor in state)
        decides = (axes.parts("code", cell), axes.parts("conditions", cell))
        return (*decides, cell.inputs, self._dtypes[loaded.key])


def _run_what_differs(cell: Cell, model: nn.Module, batch: Sequence[Call]) -> None:
    """Runs the batch, of equal layers one; all of them where code is compiled or reads behind a cache."""
    for call in batch:
        whole = is_compiled(cell) or call.decoding is not None
        if whole:
            run_forwards(model, [call])
        else:
            run_one_of_each_kind(model, functools.partial(run_forwards, model, [call]))
