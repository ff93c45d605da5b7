"""Discontinuous choices (top-k routing, argmax): rounding can flip one, and what follows is then not small."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sweeper.comparator.hooks import hookable
from sweeper.comparator.side import Outputs, Side, run, uncompiled_side
from sweeper.inputs.layout import Step, Tokens, to_rows

# where the chosen indices are in the result; None: the result itself
_CHOOSING: dict[Any, int | None] = {
    **dict.fromkeys((torch.topk, Tensor.topk, torch.sort, Tensor.sort), 1),
    **dict.fromkeys((torch.argmax, Tensor.argmax, torch.argmin, Tensor.argmin, torch.argsort, Tensor.argsort), None),
}


def chosen_indices(func: Any, args: Any, result: Any) -> Tensor | None:
    """The indices that a call chose by comparing floating-point numbers; None where it chose nothing."""
    if func not in _CHOOSING or not (args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
        return None
    place = _CHOOSING[func]
    if place is None:
        return result if isinstance(result, Tensor) else None
    return result[place]


class Choices(TorchFunctionMode):
    """Keeps the indices of every choice, as they came."""

    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if (index := chosen_indices(func, args, result)) is not None:
            self.chosen.append(index.clone())
        return result


class Imposed(TorchFunctionMode):
    """Makes every choice as it was made before: the same indices, and what lies there.

    Attributes:
        fits: whether all choices came in the same order and shapes.
    """

    def __init__(self, chosen: Sequence[Tensor]) -> None:
        super().__init__()
        self._chosen = list(chosen)
        self.fits = True

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        index = chosen_indices(func, args, result)
        if index is None:
            return result
        if not self._chosen or self._chosen[0].shape != index.shape:
            self.fits = False
            return result
        imposed = self._chosen.pop(0).to(index.device)
        if isinstance(result, Tensor):
            return imposed
        kwargs = kwargs or {}
        place = 2 if func in (torch.topk, Tensor.topk) else 1
        dim = kwargs.get("dim", args[place] if len(args) > place and isinstance(args[place], int) else -1)
        keeps = imposed.dim() == args[0].dim()
        values = args[0].gather(dim, imposed) if keeps else args[0].gather(dim, imposed.unsqueeze(dim)).squeeze(dim)
        return type(result)((values, imposed))


def run_with_choices(side: Side, chosen: Sequence[Tensor]) -> Outputs | None:
    """The side's outputs with other choices than its own; None where they do not line up."""
    imposed = Imposed(chosen)
    with imposed:
        outputs = run(uncompiled_side(side))
    return outputs if imposed.fits and not imposed._chosen else None


def choices_of(side: Side) -> list[Tensor]:
    """What a side chooses, choice by choice."""
    choices = Choices()
    with choices:
        run(uncompiled_side(side))
    return choices.chosen


def same_choices(reference: Sequence[Tensor], candidate: Sequence[Tensor]) -> bool:
    """Whether nothing was chosen otherwise, as far as the choices line up."""
    if [one.shape for one in reference] != [other.shape for other in candidate]:
        return True
    pairs = zip(reference, candidate, strict=True)
    return all(torch.equal(one, other.to(one.device)) for one, other in pairs)


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
        self._before = 0  # of what was chosen, before this call
        self._places: list[Tensor] = []  # of the tokens of each step of this call

    def begin(self, tokens: Tokens) -> None:
        self._tokens = tokens
        if isinstance(tokens, Step):
            self._places.append(tokens.place_N)

    def end(self) -> None:
        """The call that was begun is over: what was chosen step by step is put in the order of the call's tokens."""
        if self._places:
            came, steps = self.chosen[self._before :], len(self._places)
            order_N = torch.cat(self._places).argsort()
            together = [came[place :: len(came) // steps] for place in range(len(came) // steps)]
            merged = [
                Chosen(one[0].module, torch.cat([chosen.index_NK for chosen in one])[order_N])
                for one in together
                if len(came) % steps == 0 and sum(len(chosen.index_NK) for chosen in one) == len(order_N)
            ]
            self.chosen[self._before :], self._places = merged, []
        self._before = len(self.chosen)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        chosen = chosen_indices(func, args, result)
        if chosen is not None and self._tokens is not None:
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
            for name, module in hookable(model):
                handles.append(module.register_forward_pre_hook(enter(name)))
                handles.append(module.register_forward_hook(leave))
            yield
        finally:
            for handle in handles:
                handle.remove()


def run_with_selections(side: Side) -> list[Chosen]:
    """What the side chose."""
    selections = Selections()
    with selections.listening(side.model), selections:
        run(side, selections)
    return selections.chosen


def flips_by_module(reference: Sequence[Chosen], candidate: Sequence[Chosen]) -> dict[str, float]:
    """The share of tokens for which each module chose otherwise; empty where nothing is chosen or lines up."""
    if [one.index_NK.shape for one in reference] != [other.index_NK.shape for other in candidate]:
        return {}
    flips: dict[str, list[Tensor]] = {}
    for one, other in zip(reference, candidate, strict=True):
        flip_N = (one.index_NK != other.index_NK.to(one.index_NK.device)).any(-1)
        flips.setdefault(other.module, []).append(flip_N)
    return {module: float(torch.cat(pieces).double().mean()) for module, pieces in flips.items()}


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
