"""sweeper: how much a model's outputs moved, where it starts, whether it is rounding, and which switch to put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeper.models import Comparison, compare_models

__version__ = "0.1.0"
__all__ = ["Comparison", "compare_models"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a model is compared: `import sweeper` alone stays fast."""
    if name not in __all__:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    from sweeper import models

    return getattr(models, name)
