"""A local folder as a checkpoint, and what every checkpoint's folder is made of."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from sweeper.checkpoints.hashes import digest_of, hash_files
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
_DECIDING = (".json", ".safetensors", ".gguf", ".model", ".txt", ".jinja", ".spm")  # weights, configs, tokenizer


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
    parts = {path, *path.glob("[0-9]*_*"), *(path / part for part in _parts(path))}
    return sorted(file for part in parts for file in part.glob("*") if file.is_file())


def deciding_files(path: Path) -> list[str]:
    """What of a folder can decide a result, by paths inside of it: weights, configs, tokenizer, and the parts that a
    sentence-transformers model has in folders of their own."""
    return [file.relative_to(path).as_posix() for file in all_files(path) if file.suffix in _DECIDING]


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


def prepare(checkpoint: FolderCheckpoint) -> tuple[Path, str, str]:
    """The folder itself, `sha256:<hex>` of its weights (of one file, this is what `sha256sum` prints), and the hash of
    all its files. Nobody keeps the hashes of a user's folder: it is read anew each time."""
    path = located(checkpoint)
    require_weights(path)
    kept = hash_files(path, deciding_files(path))
    weights = {
        name: file.sha256 for name, file in kept.files.items() if fnmatch(name, "*.safetensors") and "/" not in name
    }
    return path, f"sha256:{next(iter(weights.values())) if len(weights) == 1 else digest_of(weights)}", kept.digest


def located(checkpoint: FolderCheckpoint) -> Path:
    """Its path, absolute."""
    return Path(checkpoint.path).expanduser().resolve()


def require_weights(path: Path) -> None:
    """Checks that a folder holds `config.json` and safetensors.

    Raises:
        CheckpointError: something is missing, and what is there instead; or an index names what is not beside it.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder; give one with config.json and *.safetensors, or a .gguf file")
    names = sorted(entry.name for entry in path.iterdir())
    _require_files_of_indexes(path)
    if {"adapter_config.json", "adapter_model.safetensors"} <= {*names}:
        return  # its config is its base's
    missing = [pattern for pattern in ("config.json", "*.safetensors") if not any(fnmatch(n, pattern) for n in names)]
    if missing:
        raise CheckpointError(
            f"{path} has no {' and no '.join(missing)}; only safetensors are read, "
            f"save the model with save_pretrained (it holds: {', '.join(names) or 'nothing'})"
        )


def _parts(path: Path) -> list[str]:
    """The folders that `modules.json` names; the folder itself has an empty name there.

    Raises:
        CheckpointError: one of them lies elsewhere.
    """
    names = [str(module.get("path", "")) for module in _listed(path / "modules.json")]
    for name in names:
        _require_inside(path / "modules.json", name, "folders below it")
    return [name for name in names if name]


def _require_files_of_indexes(path: Path) -> None:
    """A shard index may name only files of its folder."""
    for index in sorted(path.glob("*.safetensors.index.json")):
        shards = (read_json(index) or {}).get("weight_map")
        if not isinstance(shards, dict):
            raise CheckpointError(f"{index} has no weight_map, which says in which file a tensor lies")
        for shard in sorted({*map(str, shards.values())}):
            _require_inside(index, shard, "files beside it", beside=True)
            if not (path / shard).is_file():
                raise CheckpointError(f"{index} names {shard}, which is not there")


def _require_inside(by: Path, name: str, allowed: str, *, beside: bool = False) -> None:
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or (beside and len(parts.parts) != 1):
        raise CheckpointError(f"{by} names {name}; it may name only {allowed}")


def _listed(path: Path) -> list[dict[str, Any]]:
    found = read_json(path) if path.is_file() else []
    return [module for module in found if isinstance(module, dict)] if isinstance(found, list) else []


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None


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
