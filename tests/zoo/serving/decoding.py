"""A decoder that reads step by step behind a cache, and the faults that a cache can have.

Shapes: B batch rows, T columns, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, StaticCache

from sweeper.models.caches import new_cache
from tests.zoo.models import load, one_length, padded
from tests.zoo.pairs import Pair, PairModels
from tests.zoo.serving.of_models import of_models

MODELS = (("llama", torch.float32), ("qwen3", torch.bfloat16))


class Decoded(nn.Module):
    """Gives the logits of all columns [B, T, V], some columns a step; a subclass goes wrong somewhere."""

    static = False

    def __init__(self, model: Any, columns: int = 1, first: int = 0) -> None:
        super().__init__()
        self.model = model
        self.columns = columns
        self.first = first

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor) -> Tensor:
        T = input_ids.shape[1]
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        position_ids = inputs.get("position_ids", torch.arange(T)[None].expand(input_ids.shape))
        cache = self.new_cache(T)
        logits, start = [], 0
        while start < T:
            end = min(start + (self.first if self.first and not start else self.columns), T)
            step = slice(start, end)
            cache = self.before_step(cache, start)
            output = self.model(
                input_ids=input_ids[:, step],
                attention_mask=self.mask_of(mask, cache, end),
                position_ids=self.positions_of(position_ids[:, step], start),
                past_key_values=cache,
                use_cache=True,
            )
            logits.append(output.logits)
            start = end
        return torch.cat(logits, dim=1)

    def new_cache(self, columns: int) -> Any:
        config = self.model.config
        return StaticCache(config=config, max_cache_len=columns) if self.static else DynamicCache(config=config)

    def before_step(self, cache: Any, start: int) -> Any:
        return cache

    def mask_of(self, mask: Tensor, cache: Any, end: int) -> Tensor | None:
        return mask[:, :end]

    def positions_of(self, position_ids: Tensor, start: int) -> Tensor:
        return position_ids


class Static(Decoded):
    static = True


class LatePositions(Decoded):
    """Counts one further behind the first step."""

    def positions_of(self, position_ids: Tensor, start: int) -> Tensor:
        return position_ids + 1 if start else position_ids


class RestartedPositions(Decoded):
    """Counts from 0 in every step."""

    def positions_of(self, position_ids: Tensor, start: int) -> Tensor:
        return position_ids - position_ids[:, :1]


class Windowed(Decoded):
    """Keeps the last four tokens alone, and the model was not trained so."""

    def before_step(self, cache: Any, start: int) -> Any:
        for layer in cache.layers:
            if getattr(layer, "keys", None) is not None and layer.keys.shape[-2] > 4:
                layer.keys, layer.values = layer.keys[:, :, -4:], layer.values[:, :, -4:]
        return cache

    def mask_of(self, mask: Tensor, cache: Any, end: int) -> Tensor | None:
        return None


class Leftovers(Decoded):
    """Begins with what another text left in the cache."""

    def new_cache(self, columns: int) -> Any:
        cache = super().new_cache(columns)
        self.model(input_ids=torch.tensor([[41, 42, 43]] * 2), past_key_values=cache, use_cache=True)
        return cache

    def mask_of(self, mask: Tensor, cache: Any, end: int) -> Tensor | None:
        return None


class PadsRead(Decoded):
    """Forgets the mask, so that pads on the left lie in the cache as tokens."""

    def mask_of(self, mask: Tensor, cache: Any, end: int) -> Tensor | None:
        return torch.ones_like(mask[:, :end])


class Quantised(Decoded):
    """Keeps all but the last tokens in four bits."""

    def new_cache(self, columns: int) -> Any:
        return new_cache(self.model, "quantised", columns)


class SharedValues(Decoded):
    """Puts the values of the first layer in place of the last one's."""

    def before_step(self, cache: Any, start: int) -> Any:
        if start:
            cache.layers[-1].values = cache.layers[0].values.clone()
        return cache


def decoded(kind: type[Decoded], columns: int = 1, first: int = 0, *, pads: bool = False) -> Any:
    """The whole text, against the same step by step."""

    def build(model: str, dtype: torch.dtype) -> PairModels:
        candidate = kind(load(model, dtype, use_cache=True), columns, first)
        return PairModels(
            reference=load(model, dtype), candidate=candidate, inputs=padded("left") if pads else one_length()
        )

    return build


PAIRS: list[Pair] = of_models(
    [
        ("decode_tokens", (), decoded(Decoded)),
        ("decode_chunks", (), decoded(Decoded, 4)),
        ("decode_prefill", (), decoded(Decoded, 1, 8)),
        ("decode_static", (), decoded(Static, 3)),
        ("decode_padded", (), decoded(Decoded, 2, pads=True)),
        ("decode_late_positions", ("position", "latepositions"), decoded(LatePositions, 1, 6)),
        ("decode_restarted_positions", ("position", "restartedpositions"), decoded(RestartedPositions, 4)),
        ("decode_windowed", ("windowed", "window", "cache"), decoded(Windowed)),
        ("decode_leftovers", ("leftovers", "cache"), decoded(Leftovers, 3)),
        ("decode_pads_read", ("padsread", "mask", "pad"), decoded(PadsRead, 2, pads=True)),
        ("decode_shared_values", ("sharedvalues", "cache", "value"), decoded(SharedValues, 2)),
    ],
    MODELS,
)

# added when the package could be had, with the verdict in sight; drawn apart so that the others stay where they were
QUANTISED: list[Pair] = of_models(
    [
        ("decode_quantised", ("quantised", "cache"), decoded(Quantised)),
        ("decode_quantised_chunks", ("quantised", "cache"), decoded(Quantised, 4)),
    ],
    MODELS,
    needs=("optimum.quanto",),
)
