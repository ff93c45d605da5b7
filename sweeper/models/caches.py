"""Key-value caches, new for each run."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sweeper.errors import UnsupportedError
from sweeper.models.family import accepts

RESIDUAL_TOKENS = 16  # the last ones, which a quantised cache keeps as they are
GROUP = 64  # so many numbers of a quantised cache share a scale


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
    return _quantised(text) if kind == "quantised" else transformers.DynamicCache(config=text)


def _quantised(config: Any) -> Any:
    import transformers

    _unpack_without_compiler()
    options = {"nbits": 4, "q_group_size": GROUP, "residual_length": RESIDUAL_TOKENS}
    try:
        made = transformers.QuantizedCache("quanto", config, **options)
    except ValueError as error:  # a layer that is no plain attention
        raise UnsupportedError(f"transformers has no quantised cache for this model: {error}") from error
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    if width % GROUP:
        raise UnsupportedError(f"a quantised cache keeps groups of {GROUP} numbers, and a token has {width} keys here")
    return made


@cache
def _unpack_without_compiler() -> Any:
    """Has optimum-quanto unpack its integers with operations of torch, to the same integers.

    Its own code for that is compiled at its first use, into the installed package: by a C++ compiler, or by nvcc, which
    takes minutes.
    """
    importlib.import_module("optimum.quanto")  # registers its own
    library = torch.library.Library("quanto", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*Overriding a previously registered kernel")
        for device in ("CPU", "CUDA"):
            library.impl("unpack", _unpacked, device, allow_override=True)
    return library  # what it registered lasts as long as it does


def _unpacked(packed: Tensor, bits: int) -> Tensor:
    """The integers that lie in bytes: those in the lowest bits of all bytes first."""
    return torch.cat([(packed >> low) & (2**bits - 1) for low in range(0, 8, bits)])
