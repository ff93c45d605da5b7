"""What never changes of a model is looked for once: hundreds of modules are walked in milliseconds, for every cell."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import TypeVar

from torch import nn

T = TypeVar("T")


def once_a_model(look: Callable[[nn.Module], T]) -> Callable[[nn.Module], T]:
    """Remembers what a function finds in a model for as long as the model lives."""
    found: weakref.WeakKeyDictionary[nn.Module, T] = weakref.WeakKeyDictionary()

    @functools.wraps(look)
    def looked_for(model: nn.Module) -> T:
        if model not in found:
            found[model] = look(model)
        return found[model]

    return looked_for
