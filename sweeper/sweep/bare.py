"""Bare forwards, without hooks: which kernels run, what was asked for and does nothing, and what it costs."""

from __future__ import annotations

import torch

from sweeper.comparator.forwards import HookedSide
from sweeper.config import Attention, Cell, Compile, Decode
from sweeper.errors import UnsupportedError
from sweeper.inputs.batching import idle
from sweeper.models.checks import operator_mismatch
from sweeper.models.conditions import conditions
from sweeper.models.loading import LoadedModel
from sweeper.sweep.code_paths import CodePaths, is_compiled
from sweeper.sweep.cost import measure_cost, warm_up


def run_bare(
    cell: Cell,
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
        load_time_s, repeats: as in `measure_cost`.

    Raises:
        UnsupportedError: another kernel ran than the one that was asked for.
    """
    model, batch = loaded.model, ran.first_batch
    with conditions(cell) as without_effect, torch.inference_mode():
        known = code_paths.knows_kernels(cell, loaded)
        if is_compiled(cell) if not known else repeats != 0:  # what tells the kernels warms up all else
            warm_up(cell, model, batch)
        kernels = code_paths.kernels(cell, loaded, batch)
        if cell.compile is Compile.OFF and (reason := operator_mismatch(cell.attention, kernels)):
            raise UnsupportedError(reason)
        tried = code_paths.without_effect(cell, model, token_ids)
        cost = measure_cost(cell, model, batch, ran.first_output_NF, load_time_s=load_time_s, repeats=repeats)
    without_effect |= tried
    if reason := idle(cell, token_ids):
        without_effect["batch"] = reason
    if cell.decode is not Decode.WHOLE and ran.steps == 1:
        without_effect["decode"] = "each forward is one step: it is no longer, or a text begins that late behind pads"
    if not kernels and cell.attention is not Attention.EAGER:
        without_effect["attention"] = "no attention was seen at work"
    return {"attention_kernels": kernels, "without_effect": without_effect, "cost": cost}
