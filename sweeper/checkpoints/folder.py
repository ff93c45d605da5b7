"""A local folder as a checkpoint, and what every checkpoint's folder is made of."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from sweeper.config import FolderCheckpoint
from sweeper.errors import CheckpointError

# What from_pretrained reads: the weights, the configs and the tokenizer; no pickles, no code, no other formats. Then
# what sentence-transformers reads beside it, its parts in folders of their own: 1_Pooling, 2_Normalize, 2_Dense.
_FILES = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template.jinja",
    "adapter_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "modules.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
)
_FILES_OF_A_PART = ("config.json", "*.safetensors")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.*", "*.model")
_FILES_OF_A_TOKENIZER = (*_TOKENIZER_FILES, "tokenizer*", "special_tokens_map.json", "added_tokens.json", "merges.txt")
_CHUNK_BYTES = 1 << 20


def wanted(names: Iterable[str], *, weights: bool = True) -> list[str]:
    """Those of a repository's files that a checkpoint is made of; paths with `/`.

    Args:
        weights: also those that hold weights.
    """
    chosen = []
    for name in names:
        part, _, file = name.rpartition("/")
        if part and not re.fullmatch(r"\d+_\w+", part):
            continue  # other formats lie in folders
        if any(fnmatch(file, pattern) for pattern in (_FILES_OF_A_PART if part else _FILES)):
            chosen.append(name)
    return [name for name in chosen if weights or not name.endswith(".safetensors")]


def all_files(path: Path) -> list[Path]:
    """The files of a folder and of the parts of a sentence-transformers model in it."""
    return sorted(file for pattern in ("*", "[0-9]*_*/*") for file in path.glob(pattern) if file.is_file())


def is_tokenizers(name: str) -> bool:
    """Whether a file is part of a tokenizer, its chat template included."""
    return any(fnmatch(name, pattern) for pattern in (*_FILES_OF_A_TOKENIZER, "chat_template.jinja"))


def gguf_file(path: Path) -> Path | None:
    """The GGUF file that is meant by its own path, or by that of a folder without safetensors; None where none is.

    Raises:
        CheckpointError: the folder holds several.
    """
    if path.suffix == ".gguf" and path.is_file():
        return path
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    files = sorted(path.glob("*.gguf"))
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise CheckpointError(f"{path} holds several GGUF files; type checkpoint={path}/FILE, of: {names}")
    return files[0] if files else None


def prepare(checkpoint: FolderCheckpoint) -> tuple[Path, str]:
    """The folder itself, and `sha256:<hex>` of its weights."""
    path = located(checkpoint)
    require_weights(path)
    return path, f"sha256:{weights_sha256(path)}"


def located(checkpoint: FolderCheckpoint) -> Path:
    """Its path, absolute."""
    return Path(checkpoint.path).expanduser().resolve()


def require_weights(path: Path) -> None:
    """Checks that a folder holds `config.json` and safetensors.

    Raises:
        CheckpointError: something is missing; names what is there instead.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; give one with config.json and *.safetensors, or a .gguf file")
    names = sorted(entry.name for entry in path.iterdir())
    if {"adapter_config.json", "adapter_model.safetensors"} <= {*names}:
        return  # its config is its base's
    missing = [pattern for pattern in ("config.json", "*.safetensors") if not any(fnmatch(n, pattern) for n in names)]
    if missing:
        raise CheckpointError(
            f"{path} has no {' and no '.join(missing)}; only safetensors are read, "
            f"save the model with save_pretrained (it holds: {', '.join(names) or 'nothing'})"
        )


def weights_sha256(path: Path) -> str:
    """Hashes all safetensors files in the order of their names: of one file, this is what `sha256sum` prints."""
    digest = hashlib.sha256()
    for file in sorted(path.glob("*.safetensors")):
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def has_tokenizer(path: Path) -> bool:
    """Whether the folder holds a tokenizer's vocabulary."""
    return any(True for pattern in _TOKENIZER_FILES for _ in path.glob(pattern))


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """transformers' own bars off: they would write into the middle of sweeper's."""
    from transformers.utils import logging as transformers_logging  # seconds

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
