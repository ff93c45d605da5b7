"""sweeper: how much a model's outputs moved, where it starts, whether it is rounding, and which switch to put back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sweeper._version import __version__

if TYPE_CHECKING:
    from sweeper.verdict.comparison import Comparison, compare_models

__all__ = ["Comparison", "__version__", "compare_models"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a model is compared: `import sweeper` alone stays fast."""
    if name not in __all__:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    from sweeper.verdict import comparison

    return getattr(comparison, name)
