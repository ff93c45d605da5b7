"""Compiled models. Hooks that come after the first call are never called; those before it stay in the code for good.

Whoever hooks a model therefore runs its code as it is written.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether a module of it was given to `torch.compile`, or compiled itself."""
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return dynamo is not None and any(
        isinstance(module, dynamo.OptimizedModule) or module._compiled_call_impl is not None
        for module in model.modules()
    )


@contextlib.contextmanager
def uncompiled() -> Iterator[None]:
    """Compiled code runs as it is written, for as long as the context lasts."""
    if "torch._dynamo" not in sys.modules:  # nothing was compiled, and importing it takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
