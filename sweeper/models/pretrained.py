"""The call of `from_pretrained`, and an error in place of weights that are drawn at random or left out."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import nn

from sweeper.checkpoints.adapter import BASE
from sweeper.checkpoints.card import read_card
from sweeper.checkpoints.folder import no_progress_bars
from sweeper.config import Checkpoint, Head
from sweeper.errors import CheckpointError, UnsupportedError
from sweeper.models.checks import refused
from sweeper.models.family import model_class

_SHOWN = 3  # names of weights in an error


def whole_model(folder: Path, checkpoint: Checkpoint, options: dict[str, Any]) -> nn.Module:
    """What `from_pretrained(folder, **options)` gives, with every weight from the files.

    A pooler that the files lack is left out, as nothing reads it: it would be drawn at random.

    Raises:
        UnsupportedError: transformers refuses the attention implementation, or lacks a package.
        CheckpointError: weights are missing, left over or of another shape.
    """
    base = folder / BASE
    if base.is_dir():  # what transformers tells of an adapter's load speaks of the adapter's own weights alone
        place = {} if is_quantised(folder) else {"device_map": "meta"}
        pooler = _checked(base, checkpoint, {**options, **place})[1]
        options = {**options, **pooler}
    return _checked(folder, checkpoint, options)[0]


def _checked(folder: Path, checkpoint: Checkpoint, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and what had to be asked for besides."""
    kind = model_class(folder, checkpoint.head)
    model, info = _pretrained(kind, folder, options)
    missing, more = sorted(info["missing_keys"]), {}
    if missing and all("pooler." in name for name in missing) and _takes(kind, "add_pooling_layer"):
        more = {"add_pooling_layer": False}
        model, info = _pretrained(kind, folder, {**options, **more})
        missing = sorted(info["missing_keys"])
    if mismatched := sorted(info["mismatched_keys"]):
        shapes = [f"{name} {tuple(in_file)} where {tuple(asked)} is needed" for name, in_file, asked in mismatched]
        raise CheckpointError(f"{folder} holds weights of other shapes than config.json asks for: {_some(shapes)}")
    _check(folder, checkpoint, model, missing, sorted(info["unexpected_keys"]))
    return model, more


def _pretrained(kind: type[Any], folder: Path, options: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    try:
        with no_progress_bars():
            # mismatched sizes: listed by name, instead of an error that does not name them
            model, info = kind.from_pretrained(
                folder, output_loading_info=True, ignore_mismatched_sizes=True, **options
            )
    except (ValueError, ImportError) as error:
        if any(word in str(error) for word in ("attention", "attn")):
            raise UnsupportedError(refused(options["attn_implementation"], error)) from None
        if isinstance(error, ImportError) or is_quantised(folder):
            raise UnsupportedError(refused(f"{folder.name}", error)) from None
        raise
    return model, info


def is_quantised(folder: Path) -> bool:
    """Whether config.json says that the weights are stored as other numbers than they stand for."""
    return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config"))


def _check(folder: Path, checkpoint: Checkpoint, model: nn.Module, missing: list[str], unexpected: list[str]) -> None:
    if missing:
        raise CheckpointError(
            f"{folder} lacks {_some(missing)} of {type(model).__name__}, which would be drawn at random; "
            f"{_type(folder, model)}"
        )
    left_over = [name for name in unexpected if not any(fnmatch(name, given) for given in checkpoint.ignore_weights)]
    if checkpoint.head is Head.BASE:  # the head of the saved class is left out on purpose
        left_over = [name for name in left_over if not _of_a_head(folder, name, model)]
    if left_over:
        patterns = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in left_over})
        raise CheckpointError(
            f"{folder} holds {_some(left_over)}, for which {type(model).__name__} has no place; "
            f"{_type(folder, model)}, or leave them out: 'checkpoint.ignore_weights=[{','.join(patterns)}]'"
        )


def _of_a_head(folder: Path, name: str, model: nn.Module) -> bool:
    """Whether the class that was saved has this weight, and not in the part that is loaded."""
    try:
        saved = model_class(folder, Head.AS_SAVED)
    except UnsupportedError:
        return False
    prefix = getattr(saved, "base_model_prefix", "")
    return saved is not type(model) and not (prefix and name.startswith(f"{prefix}."))


def _type(folder: Path, model: nn.Module) -> str:
    """What to do about it: another head, or other files."""
    card = read_card(folder)
    if card.architecture == type(model).__name__:
        return "save the model again, or fetch the files again"
    head = Head.BASE if card.architecture is None else card.head
    return f"the folder was saved as {card.architecture or 'no class that it names'}: type checkpoint.head={head}"


def _takes(kind: type[Any], argument: str) -> bool:
    return argument in inspect.signature(kind.__init__).parameters


def _some(names: Iterable[str]) -> str:
    names = list(names)
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more weights"
