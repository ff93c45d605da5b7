"""A kind of pair, built with each of two models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from tests.zoo.pairs import HARMLESS, SEMANTIC, Pair, PairModels

Build = Callable[[str, torch.dtype], PairModels]
Kind = tuple[str, tuple[str, ...], Build]
"""A kind: its name, the words that name its cause (none where it is harmless), and what builds it."""


def of_models(
    kinds: list[Kind], models: tuple[tuple[str, torch.dtype], ...], needs: tuple[str, ...] = ()
) -> list[Pair]:
    """Each kind with each model: `kind/model_dtype`."""
    return [
        Pair(
            name=f"{kind}/{model}_{str(dtype).removeprefix('torch.')}",
            answer="harmful" if cause else "harmless",
            allowed=SEMANTIC if cause else HARMLESS,
            cause=cause,
            dtype=str(dtype).removeprefix("torch."),
            build=partial(build, model, dtype),
            needs=needs,
        )
        for kind, cause, build in kinds
        for model, dtype in models
    ]
