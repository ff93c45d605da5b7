"""Key-value caches, new for each run."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from sweeper.errors import UnsupportedError
from sweeper.models.family import accepts

RESIDUAL_TOKENS = 16  # the last ones, which a quantised cache keeps as they are


def new_cache(model: nn.Module, kind: Literal["dynamic", "static", "quantised"], columns: int) -> Any:
    """An empty cache of transformers.

    Args:
        columns: that it is to hold, pads included.

    Raises:
        UnsupportedError: the model takes no such cache.
    """
    import transformers

    config: Any = model.config
    if not accepts(model, "past_key_values"):
        raise UnsupportedError(f"{type(model).__name__} takes no past_key_values; use decode=whole")
    text = config.get_text_config()
    if kind == "static":
        return transformers.StaticCache(config=text, max_cache_len=columns)
    if kind == "quantised":
        return transformers.QuantizedCache("quanto", text, nbits=4, residual_length=RESIDUAL_TOKENS)
    return transformers.DynamicCache(config=text)
