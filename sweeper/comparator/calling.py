"""A call of a side is carried out, in one step or in several, and whoever listens to its modules is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sweeper.errors import UnsupportedError
from sweeper.inputs.calls import Call, Decoding
from sweeper.inputs.layout import Step, Tokens, in_steps
from sweeper.models.caches import new_cache
from sweeper.models.compiled import called


class Listener(Protocol):
    """Who is told of the calls of a model whose modules it hooks."""

    def begin(self, tokens: Tokens) -> object:
        """The model is called now; these are the tokens of what its modules give. Of a call in steps: each `Step`."""

    def end(self) -> object:
        """All of the call's tokens have been given."""


def carry_out(model: nn.Module, call: Call, kwargs: Mapping[str, Any], listener: Listener | None = None) -> Any:
    """What the model gives for a call; of steps, as if it were one.

    Args:
        kwargs: the call's arguments, or copies of them.
        listener: hooks modules inside of the model.
    """
    if call.decoding is not None:
        output = _in_steps(model, call, call.decoding, kwargs, listener)
    else:
        if listener is not None:
            listener.begin(call.forward)
        output = called(model, kwargs)
    if listener is not None:
        listener.end()
    return output


def _in_steps(
    model: nn.Module, call: Call, decoding: Decoding, kwargs: Mapping[str, Any], listener: Listener | None
) -> Any:
    columns = call.forward.shape[1]
    cache = new_cache(model, decoding.cache, columns)
    outputs = []
    for step in in_steps(call.forward, call.step_bounds):
        if listener is not None:
            listener.begin(step)
        outputs.append(called(model, _arguments(kwargs, call.forward.shape, step, cache)))
    held = int(cache.get_seq_length())
    if held != columns:
        raise UnsupportedError(
            f"{type(model).__name__} leaves {held} of {columns} columns in the cache: it does not read behind it"
        )
    return _joined(outputs)


def _arguments(kwargs: Mapping[str, Any], shape: tuple[int, int], step: Step, cache: Any) -> dict[str, Any]:
    """The step's columns of what has a value a token; of the mask, all that lies behind them too."""

    def of_step(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.shape[:2] != shape:
            return value
        return value[:, : step.end] if name == "attention_mask" else value[:, step.start : step.end]

    given = {name: of_step(name, value) for name, value in kwargs.items()}
    return {**given, "past_key_values": cache, "use_cache": True}


def _joined(outputs: Sequence[Any]) -> Any:
    """What the steps gave a token, one behind the other."""
    if isinstance(outputs[0], Tensor):
        return torch.cat(list(outputs), dim=1)
    a_token = [name for name, value in outputs[0].items() if isinstance(value, Tensor) and value.dim() > 2]
    return {name: torch.cat([output[name] for output in outputs], dim=1) for name in a_token}


def of_calls(tensors: Sequence[Tensor], calls: Sequence[Call]) -> list[Tensor]:
    """What was kept of every time that a model was called: of each call, those of its steps behind one another."""
    kept = iter(tensors)
    pieces = [[next(kept) for _ in range(call.steps)] for call in calls]
    return [torch.cat(steps, dim=1) if len(steps) > 1 else steps[0] for steps in pieces]
