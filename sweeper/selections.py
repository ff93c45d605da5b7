"""Discontinuous choices (top-k routing, argmax): rounding can flip one, and what follows is then not small."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sweeper.side import Call, Outputs, Side, rows, run

_CHOOSING = {torch.topk: 1, Tensor.topk: 1, torch.argmax: None, Tensor.argmax: None}


class Selections(TorchFunctionMode):
    """Keeps what every top-k and argmax chose, token by token, in order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[Tensor] = []
        self._call: Call | None = None

    def begin(self, call: Call) -> None:
        self._call = call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CHOOSING and self._call is not None:
            index = _CHOOSING[func]
            chosen = result if index is None else result[index]
            aligned = rows(chosen.double() if chosen.dim() > 1 else chosen.double()[:, None], self._call.forward)
            if aligned is not None:
                self.chosen.append(aligned.sort(-1)[0])
        return result


def run_with_selections(side: Side) -> tuple[Outputs, list[Tensor]]:
    """The side's outputs, and what it chose."""
    selections = Selections()
    with selections:
        outputs = run(side, selections.begin)
    return outputs, selections.chosen


def flipped(reference: list[Tensor], candidate: list[Tensor]) -> float | None:
    """Share of tokens for which anything was chosen differently; None where nothing is chosen or cannot be aligned."""
    if not reference or [one.shape for one in reference] != [other.shape for other in candidate]:
        return None
    flips = [(one != other.to(one.device)).any(-1) for one, other in zip(reference, candidate, strict=True)]
    return float(torch.cat(flips).double().mean())
