"""Bare forwards, without hooks: which kernels run, what was asked for and does nothing, and what it costs."""

from __future__ import annotations

import torch

from sweeper.comparator.forwards import HookedSide
from sweeper.config import Attention, Compile, Decode
from sweeper.errors import UnsupportedError
from sweeper.inputs.batching import idle
from sweeper.models.checks import operator_mismatch
from sweeper.models.conditions import conditions
from sweeper.models.loading import LoadedModel
from sweeper.planning.plan import PlannedCell
from sweeper.records.cell import Cost
from sweeper.sweep.code_paths import CodePaths
from sweeper.sweep.cost import measure_cost, warm_up


def run_bare(
    planned: PlannedCell,
    loaded: LoadedModel,
    ran: HookedSide,
    token_ids: list[list[int]],
    code_paths: CodePaths,
    *,
    load_time_s: float | None,
    repeats: int | None,
) -> dict[str, object]:
    """What bare forwards of the first batch tell. Field names as in `CellRecord`.

    Args:
        ran: the cell's side, with hooks.
        token_ids: of all texts.
        repeats: as in `measure_cost`; None: only where no cell of its like has been measured.

    Raises:
        UnsupportedError: another kernel ran than the one that was asked for.
    """
    cell, model, batch = planned.cell, loaded.model, ran.first_batch

    def measure() -> Cost:
        if repeats != 0:
            warm_up(cell, model, batch)
        return measure_cost(cell, model, batch, ran.first_output_NF, repeats=repeats)

    with conditions(cell) as without_effect, torch.inference_mode():
        kernels = code_paths.kernels(cell, loaded, batch)
        if cell.compile is Compile.OFF and (reason := operator_mismatch(cell.attention, kernels)):
            raise UnsupportedError(reason)
        tried = code_paths.without_effect(cell, model, token_ids)
        cost = code_paths.cost(planned, loaded, measure) if repeats is None else measure()
    without_effect |= tried
    if reason := idle(cell, token_ids):
        without_effect["batch"] = reason
    if cell.decode is not Decode.WHOLE and ran.steps == 1:
        without_effect["decode"] = "each forward is one step: it is no longer, or a text begins that late behind pads"
    if not kernels and cell.attention is not Attention.EAGER:
        without_effect["attention"] = "no attention was seen at work"
    cost = cost.model_copy(update={"load_time_s": load_time_s})
    return {"attention_kernels": kernels, "without_effect": without_effect, "cost": cost}
