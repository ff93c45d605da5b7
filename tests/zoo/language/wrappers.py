"""Wrappers that call a language model in another way, or hand out something else of what it gives.

Shapes: B batch rows, T columns, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Greedy(nn.Module):
    """The token ids that greedy decoding would take, and the last of the logits if asked for."""

    def __init__(self, model: nn.Module, *, scores: bool) -> None:
        super().__init__()
        self.model, self.scores = model, scores

    def choose(self, logits: Tensor) -> Tensor:
        return logits.argmax(dim=-1)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        logits = self.model(**inputs).logits
        return ({"logits": logits} if self.scores else {}) | {"tokens": self.choose(logits)}


class GreedyOfHalf(Greedy):
    """Looks at the first half of the vocabulary alone."""

    def choose(self, logits: Tensor) -> Tensor:
        return logits[..., : logits.shape[-1] // 2].argmax(dim=-1)


class EarlierHiddenStates(nn.Module):
    """Returns hidden states, all but the first replaced by the one before: those of layer 0 twice, the last never."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **inputs: Tensor) -> dict[str, Any]:
        output = self.model(**inputs)
        states = output.hidden_states
        return {"logits": output.logits, "hidden_states": (states[0], *states[:-1])}


class HiddenStates(EarlierHiddenStates):
    """Returns logits and hidden states as they are."""

    def forward(self, **inputs: Tensor) -> dict[str, Any]:
        output = self.model(**inputs)
        return {"logits": output.logits, "hidden_states": tuple(output.hidden_states)}


class Wrapped(nn.Module):
    """Calls a model that it holds under another name."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.wrapped = model

    def forward(self, **inputs: Any) -> Any:
        return self.wrapped(**inputs)


class Decoded(nn.Module):
    """Runs the first `start` columns at once and the others one by one from the cache, at the `position` of each."""

    def __init__(self, model: nn.Module, start: int, position: Callable[[int], int] = int) -> None:
        super().__init__()
        self.model, self.start, self.position = model, start, position

    def forward(self, input_ids: Tensor) -> Tensor:
        output = self.model(input_ids=input_ids[:, : self.start], use_cache=True)
        logits = [output.logits]
        for column in range(self.start, input_ids.shape[1]):
            positions = torch.full((len(input_ids), 1), self.position(column))
            output = self.model(
                input_ids=input_ids[:, column : column + 1],
                past_key_values=output.past_key_values,
                position_ids=positions,
                use_cache=True,
            )
            logits.append(output.logits)
        return torch.cat(logits, dim=1)


class ScalesItsInput(nn.Module):
    """Scales the embeddings that it is given in place, so that a second call would find them scaled."""

    def __init__(self, model: nn.Module, scale: float) -> None:
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, inputs_embeds: Tensor, **inputs: Tensor) -> Any:
        return self.model(inputs_embeds=inputs_embeds.mul_(self.scale), **inputs)


class ReplacesFirstToken(Wrapped):
    """Writes a special token over the first of each text, into the tensor that it is given."""

    def forward(self, input_ids: Tensor, **inputs: Tensor) -> Any:
        input_ids[:, 0] = 1
        return super().forward(input_ids=input_ids, **inputs)


def sum_then_divide(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, summed first: the sum may be more than float16 holds."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def divide_then_sum(hidden: Tensor, mask: Tensor) -> Tensor:
    """The mean over real tokens, divided first."""
    weights = mask[..., None].to(hidden.dtype)
    return (hidden * (weights / weights.sum(dim=1, keepdim=True))).sum(dim=1)
