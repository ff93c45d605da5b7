"""An adapter (PEFT) and the model that it was trained on become one folder, which `from_pretrained` loads as one model.

Nothing is copied: the folder holds links. transformers reads an adapter that lies beside its base from there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

from sweeper.checkpoints import cache, folder
from sweeper.errors import CheckpointError

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base"
"""The name, in the folder of both, of a link to the base's own folder."""


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter without its base."""
    if not (path / CONFIG).is_file():
        return False
    return not any(not file.name.startswith("adapter_") for file in path.glob("*.safetensors"))


def require_whole(path: Path, is_base_of: Path | None) -> None:
    """Refuses an adapter in the place of a base: itself, or another one, of which transformers would load no weight.

    Args:
        path: an adapter's folder.
        is_base_of: the adapter that names it; None where it was asked for itself.

    Raises:
        CheckpointError: it is named as a base.
    """
    if is_base_of is not None:
        what = "itself" if path == is_base_of else f"{path}, which is an adapter too"
        raise CheckpointError(
            f"{is_base_of}: the base model of this adapter is {what}; type checkpoint.base=FOLDER (or ORG/NAME)"
        )


def base_of(path: Path, typed: str | None) -> Path | str:
    """What the adapter was trained on: an absolute folder, or a model of the hub, ORG/NAME.

    Args:
        path: the adapter's folder.
        typed: `checkpoint.base`, which wins over what adapter_config.json names.

    Raises:
        CheckpointError: nothing is named, or it is neither here nor the name of a model.
    """
    named = typed or _named(path)
    if not named:
        raise CheckpointError(f"{path / CONFIG} names no base model; type checkpoint.base=FOLDER (or ORG/NAME)")
    for place in (Path(named).expanduser(), path / named):
        if place.is_dir():
            return place.resolve()
    if re.fullmatch(r"[\w.-]+/[\w.-]+", named) and not named.startswith("."):
        return named
    where = "checkpoint.base" if typed else str(path / CONFIG)
    raise CheckpointError(f"{where} names the base model {named}, which is not here; type checkpoint.base=FOLDER")


def _named(path: Path) -> str | None:
    try:
        named: str | None = json.loads((path / CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path / CONFIG} cannot be read: {error}") from None
    return named


def with_base(adapter: Path, base: Path, say: Callable[[str], None], *, weights: bool = True) -> Path:
    """A folder in the cache with the base's files and the adapter's, all of them links.

    The adapter's tokenizer and chat template stand in for the base's where it has one.

    Args:
        adapter, base: folders.
        say: told where another process makes it, or it is not as it was made.
        weights: also the files that hold weights; without them it only describes the model.

    Raises:
        CheckpointError: the adapter has no weights that are read, or the base none.
    """
    if weights:
        _require_weights(adapter)
        folder.require_weights(base)
    links = {name: base / name for name in _files(base, weights) if not name.startswith("adapter_")}
    own = [name for name in _files(adapter, weights) if name != "config.json"]
    if folder.has_tokenizer(adapter):
        links = {name: path for name, path in links.items() if not folder.is_tokenizers(name)}
    links |= {name: adapter / name for name in own}
    named = json.dumps(sorted((name, str(path.resolve())) for name, path in links.items()))

    def build(target: Path) -> None:
        for name, path in links.items():
            (target / name).parent.mkdir(exist_ok=True)
            (target / name).symlink_to(path.resolve())
        (target / BASE).symlink_to(base.resolve(), target_is_directory=True)

    return cache.build_once(f"adapter-{hashlib.sha256(named.encode()).hexdigest()[:16]}", build, say)


def _files(path: Path, weights: bool) -> list[str]:
    return folder.wanted((str(file.relative_to(path)) for file in folder.all_files(path)), weights=weights)


def _require_weights(path: Path) -> None:
    if not (path / WEIGHTS).is_file():
        held = ", ".join(sorted(entry.name for entry in path.iterdir()))
        raise CheckpointError(
            f"{path} has no {WEIGHTS}, the only weights of an adapter that are read (it holds: {held})"
        )
