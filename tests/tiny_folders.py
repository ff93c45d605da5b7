"""Tiny folders of many architectures, as `scripts/architectures.py` saves them, each made once."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any

import torch

from scripts import architectures
from sweeper.config import Cell, parse
from tests.composing import request_of

_SCRATCH = tempfile.TemporaryDirectory(prefix="tiny-folders-")
_ALL = {architecture.name: architecture for architecture in architectures.architectures()}


@functools.cache
def folder_of(name: str) -> Path:
    """The folder of one of architectures.yaml; not to be changed."""
    folder = Path(_SCRATCH.name) / name
    folder.mkdir()
    architectures.save(_ALL[name], folder)
    return folder


def plain(name: str, **options: Any) -> Any:
    """The same by the plain call of transformers."""
    import transformers

    return getattr(transformers, _ALL[name].kind).from_pretrained(folder_of(name), **options).eval()


@functools.cache
def _composed() -> Cell:
    return request_of("wandb.mode=disabled", "inputs=token_ids", "inputs.token_ids=[[5,6]]").cells[0]


def cell_of(folder: Path, **choices: Any) -> Cell:
    """A cell of a folder, with token ids of two short texts; `head` and so on change the checkpoint."""
    keys = ("head", "pooling", "causal", "ignore_weights")
    checkpoint = {key: choices.pop(key) for key in keys if key in choices}
    data = _composed().model_dump(mode="json")
    data["checkpoint"] = {"source": "folder", "name": folder.name, "path": str(folder), **checkpoint}
    data["inputs"] = {"name": "ids", "token_ids": [[5, 6, 7, 8, 9], [10, 11, 12]]}
    cell: Cell = parse(Cell, data | choices)
    return cell


def call() -> dict[str, Any]:
    """Two texts, the second behind pads."""
    ids_BT = torch.tensor([[5, 6, 7, 8, 9], [0, 0, 10, 11, 12]])
    return {"input_ids": ids_BT, "attention_mask": (ids_BT > 0).long()}
