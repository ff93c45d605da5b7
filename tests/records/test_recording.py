"""The layout of a recording: written without sweeper, read back, and one line for what is none."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sweeper.errors import ConfigError
from sweeper.records.recording import FORMAT, Recording, digest, read_texts

IDS = np.array([5, 6, 7, 8, 9])
LENGTHS = np.array([3, 2])


def by_hand(path: Path, header: dict[str, str] | None = None, **tensors: Any) -> Path:
    """A recording as another program writes it: numpy and safetensors alone."""
    given = {"token_ids": IDS, "lengths": LENGTHS, "log_probabilities": np.zeros(5, np.float32)} | tensors
    kept = {name: tensor for name, tensor in given.items() if tensor is not None}
    save_file(kept, path, {"format": FORMAT, "about": json.dumps({"engine": "other"})} if header is None else header)
    return path


def test_a_file_of_another_program_is_read(tmp_path: Path) -> None:
    recording = Recording.read(by_hand(tmp_path / "a.safetensors"))
    assert recording.token_ids == [[5, 6, 7], [8, 9]]
    assert recording.main == "log_probabilities"
    assert recording.about["engine"] == "other"


def test_what_is_written_is_read_back_and_no_half_file_is_left(tmp_path: Path) -> None:
    tensors = {"logits": torch.randn(5, 4).bfloat16(), "module:model.b": torch.ones(5, 2), "module:a": torch.ones(5, 1)}
    recording = Recording(token_ids=[[5, 6, 7], [8, 9]], tensors=tensors, about={"modules": ["model.b", "a"]})
    path = tmp_path / "inside" / "a.safetensors"
    recording.write(path)
    again = Recording.read(path)
    assert torch.equal(again.tensors["logits"], tensors["logits"])
    assert again.modules == ["model.b", "a"]  # as they ran, not by their names
    assert [file.name for file in path.parent.iterdir()] == ["a.safetensors"]
    assert digest(path) == digest(path)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"token_ids": None}, "token_ids must be integers in one dimension (given: nothing)"),
        (
            {"lengths": LENGTHS.astype(np.float32)},
            "in one dimension (given: F32 of shape [2])",
        ),
        ({"lengths": np.array([3, 3])}, "they sum up to 6"),
        ({"lengths": np.array([5, 0])}, "the least is 0"),
        ({"log_probabilities": None}, "holds no output"),
        ({"log_probabilities": np.zeros((5, 1), np.float32)}, "floating-point numbers of shape [5], a row a token"),
        (
            {"logits": np.zeros((4, 9), np.float32)},
            "[5, features], a row a token (given: F32 of shape [4, 9])",
        ),
        ({"embeddings": np.zeros((5, 9), np.float32)}, "[2, features], a row a text"),
        ({"logprobs": np.zeros(5, np.float32)}, "logprobs: no such tensor"),
        ({"module:a": np.zeros((), np.float32)}, "a row a token (given: F32 of shape [])"),
    ],
)
def test_a_wrong_layout_is_said_in_one_line(tmp_path: Path, tensors: dict[str, Any], says: str) -> None:
    path = by_hand(tmp_path / "a.safetensors", **tensors)
    with pytest.raises(ConfigError) as caught:
        read_texts(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({}, "`format` in its header must be"),
        ({"format": FORMAT, "about": "{"}, "`about` in its header is not JSON"),
        ({"format": FORMAT, "about": "[]"}, "`about` in its header must be an object"),
        ({"format": FORMAT, "about": '{"modules": null}'}, "`modules` in `about` must be a list of names"),
        ({"format": FORMAT, "about": '{"modules": [["a"]]}'}, "`modules` in `about` must be a list of names"),
    ],
)
def test_a_wrong_header_is_said(tmp_path: Path, header: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        read_texts(by_hand(tmp_path / "a.safetensors", header))


def test_what_is_no_file_or_no_safetensors_or_nan_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_texts(tmp_path / "none.safetensors")
    other = tmp_path / "text.safetensors"
    other.write_text("not a recording, but long enough to hold the length of a header")
    with pytest.raises(ConfigError, match="no safetensors file"):
        read_texts(other)
    nan = by_hand(tmp_path / "nan.safetensors", log_probabilities=np.full(5, np.nan, np.float32))
    with pytest.raises(ConfigError, match="every number of log_probabilities is NaN"):
        Recording.read(nan)


@contextlib.contextmanager
def without_privileges() -> Iterator[None]:
    """Gives up root's, which reads every file."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.mark.parametrize("hidden", ["the file", "its folder"])
def test_a_file_that_may_not_be_read_is_one_line(hidden: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = by_hand(Path(folder) / "a.safetensors")
        Path(folder).chmod(0o755 if hidden == "the file" else 0)
        path.chmod(0)
        try:
            for read in (read_texts, Recording.read, digest):
                with without_privileges(), pytest.raises(ConfigError) as error:
                    read(path)
                assert str(error.value) == f"{path}: cannot be read: Permission denied"
        finally:
            Path(folder).chmod(0o755)
