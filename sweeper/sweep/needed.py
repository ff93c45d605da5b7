"""What every cell has imported before it can run. Light itself: workers are told of it before all is composed."""

from __future__ import annotations

from collections.abc import Mapping

_BEFORE = ("torch", "transformers", "sweeper.sweep.run")
_ANYWHERE = (
    *_BEFORE,
    "sweeper.sweep.runner",
    "sweeper.checkpoints.seeded",  # with most of transformers, which every checkpoint is read by
    "sweeper.checkpoints.gguf",
    "transformers.modeling_layers",
)
NEEDED: Mapping[str, tuple[str, ...]] = {
    "": _BEFORE,
    **{
        device: (*_ANYWHERE, *(f"sweeper.metrics.{device}.{name}" for name in ("pair", "language")))
        for device in ("cpu", "cuda")
    },
}
"""Device -> modules, which take seconds; those that measure need packages that may be missing. Under no name, what
looks at no GPU, and may be imported before it is settled which ones are visible."""
