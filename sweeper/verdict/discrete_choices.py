"""Discontinuous choices (top-k routing, argmax): rounding can flip one, and what follows is then not small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sweeper.comparator.side import Outputs, Side, run, uncompiled_side
from sweeper.inputs.layout import Tokens, to_rows

_CHOOSING = {torch.topk: 1, Tensor.topk: 1, torch.argmax: None, Tensor.argmax: None}


class Chosen(NamedTuple):
    """What one top-k or argmax chose: the module that called it, and the indices token by token, sorted, [N, K]."""

    module: str
    index_NK: Tensor


class Flips(NamedTuple):
    """Choices that differ: the share of tokens, and the modules that made them."""

    share: float
    modules: tuple[str, ...]


class Selections(TorchFunctionMode):
    """Keeps what every top-k and argmax chose, in order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[Chosen] = []
        self._tokens: Tokens | None = None
        self._running = ["the model"]

    def begin(self, tokens: Tokens) -> None:
        self._tokens = tokens

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _CHOOSING and self._tokens is not None:
            index = _CHOOSING[func]
            chosen = result if index is None else result[index]
            aligned = to_rows(chosen.double() if chosen.dim() > 1 else chosen.double()[:, None], self._tokens)
            if aligned is not None:
                self.chosen.append(Chosen(self._running[-1], aligned.sort(-1)[0]))
        return result

    @contextlib.contextmanager
    def listening(self, model: nn.Module) -> Iterator[None]:
        """Knows which module of `model` is running."""

        def enter(name: str) -> Any:
            return lambda *_: self._running.append(name)

        def leave(*_: Any) -> None:
            self._running.pop()

        handles = []
        try:
            for name, module in model.named_modules():
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave))
            yield
        finally:
            for handle in handles:
                handle.remove()


def run_with_selections(side: Side, *, seed: int = 0) -> tuple[Outputs, list[Chosen]]:
    """The side's outputs, and what it chose; `seed` as in `run`."""
    selections = Selections()
    written = uncompiled_side(side)
    with selections.listening(side.model), selections:
        outputs = run(written, selections.begin, seed=seed)
    if written is not side:
        outputs = run(side, seed=seed)
    return outputs, selections.chosen


def flipped(reference: Sequence[Chosen], candidate: Sequence[Chosen]) -> Flips | None:
    """What was chosen differently; None where nothing is chosen or it cannot be aligned."""
    if not reference or [one.index_NK.shape for one in reference] != [other.index_NK.shape for other in candidate]:
        return None
    flips = [
        (one.index_NK != other.index_NK.to(one.index_NK.device)).any(-1)
        for one, other in zip(reference, candidate, strict=True)
    ]
    modules = dict.fromkeys(one.module for one, flip_N in zip(candidate, flips, strict=True) if flip_N.any())
    return Flips(float(torch.cat(flips).double().mean()), tuple(modules))
