"""The config of a transformers model, wherever in a module it is."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn


def config_of(model: nn.Module) -> Any:
    """The config of the first transformers model in a module, which may be a wrapper; None where there is none."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if hasattr(config, "_attn_implementation"):
            return config
    return None


def takes(model: nn.Module, argument: str) -> bool:
    """Whether a model can be called with an argument: it names it, or passes all it gets to a transformers model."""
    try:
        parameters = inspect.signature(type(model).forward).parameters
    except (AttributeError, TypeError, ValueError):  # a traced module has a graph in place of code
        return False
    if argument in parameters:
        return True
    passes_on = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    is_usual = argument in ("use_cache", "position_ids") and hasattr(config_of(model), "use_cache")
    return is_usual and (passes_on or hasattr(model, "config"))
