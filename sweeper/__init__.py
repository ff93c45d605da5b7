"""sweeper: how much a model's outputs moved, where it starts, whether it is rounding, and which switch to put back."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sweeper._version import __version__

if TYPE_CHECKING:
    from sweeper.records.frames import open_sweep
    from sweeper.verdict.comparison import Comparison, compare_models

_MODULES = {
    "Comparison": "sweeper.verdict.comparison",
    "compare_models": "sweeper.verdict.comparison",
    "open_sweep": "sweeper.records.frames",
}

__all__ = ["Comparison", "__version__", "compare_models", "open_sweep"]


def __getattr__(name: str) -> Any:
    """Imports torch only when a model is compared: `import sweeper` alone stays fast."""
    if name not in _MODULES:
        raise AttributeError(f"module 'sweeper' has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
