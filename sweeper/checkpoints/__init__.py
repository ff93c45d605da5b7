"""Every checkpoint becomes a local folder with `config.json`, safetensors and, where there is one, a tokenizer.

So the load strategies always run transformers' real `from_pretrained`, whatever the weights came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweeper.checkpoints import folder, hub, seeded, wheel
from sweeper.config import Checkpoint, FolderCheckpoint, HubCheckpoint, SeededCheckpoint, WheelCheckpoint

__all__ = ["LocalCheckpoint", "prepare"]


@dataclass(frozen=True, kw_only=True)
class LocalCheckpoint:
    """A checkpoint that `from_pretrained(folder)` can read.

    Attributes:
        folder: holds `config.json` and `*.safetensors`.
        revision: which weights these are: `sha256:<hex>` of the source file, `commit:<hex>` of the hub's repository, or
            `seeded:<hex>`, a hash of everything that decides the random weights.
        has_tokenizer: `AutoTokenizer.from_pretrained(folder)` finds one.
    """

    folder: Path
    revision: str
    has_tokenizer: bool


def prepare(checkpoint: Checkpoint, *, device: str, say: Callable[[str], None]) -> LocalCheckpoint:
    """Fetches, verifies and converts what is not in the cache yet.

    Args:
        checkpoint: which one.
        device: `cpu` or `cuda`; where seeded weights with `init_on_device` are drawn.
        say: called with a line of progress before each step that takes seconds.

    Raises:
        CheckpointError: it could not be fetched, verified or converted; one line that says what to do.
        ConfigError: the settings of the checkpoint name something that does not exist.
    """
    path, revision = _prepare(checkpoint, device, say)
    return LocalCheckpoint(folder=path, revision=revision, has_tokenizer=folder.has_tokenizer(path))


def _prepare(checkpoint: Checkpoint, device: str, say: Callable[[str], None]) -> tuple[Path, str]:
    match checkpoint:
        case WheelCheckpoint():
            return wheel.prepare(checkpoint, say)
        case HubCheckpoint():
            return hub.prepare(checkpoint, say)
        case FolderCheckpoint():
            return folder.prepare(checkpoint)
        case SeededCheckpoint():
            return seeded.prepare(checkpoint, device, say)
