from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sweeper.config import Inputs, Layout, Pooling
from sweeper.errors import ConfigError
from sweeper.inputs.arrays import read_arrays
from sweeper.inputs.layout import behind_decoder_start, is_second_map, lay_out_arrays, to_tokens
from sweeper.inputs.pooling import embeddings
from sweeper.inputs.texts import validate_inputs

PICTURES = torch.arange(24.0).reshape(3, 2, 2, 2)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_an_array_is_read_again_when_its_file_changes(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"pictures{suffix}"

    def save(array: torch.Tensor, changed_ns: int) -> None:
        np.save(path, array.numpy()) if suffix == ".npy" else save_file({"pixel_values": array}, path)
        os.utime(path, ns=(changed_ns, changed_ns))

    save(PICTURES, 1)
    assert torch.equal(read_arrays(path), PICTURES)
    save(PICTURES + 1, 2)
    assert torch.equal(read_arrays(path), PICTURES + 1)


def test_a_file_must_hold_one_array_of_rows(tmp_path: Path) -> None:
    save_file({"a": PICTURES, "b": PICTURES + 1}, tmp_path / "two.safetensors")
    with pytest.raises(ConfigError, match=r"must hold one tensor \(given: a, b\)"):
        read_arrays(tmp_path / "two.safetensors")
    np.save(tmp_path / "flat.npy", np.zeros(3))
    with pytest.raises(ConfigError, match=r"a row an image or sound \(given: \(3,\)\)"):
        read_arrays(tmp_path / "flat.npy")


@pytest.mark.parametrize(("name", "words"), [("x.png", r"unknown suffix '\.png'"), ("x.npy", "no such file")])
def test_a_wrong_file_is_told_before_any_model_is_loaded(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"inputs\.arrays: {words}"):
        validate_inputs(Inputs(name="x", arrays=str(tmp_path / name)))


def test_a_row_is_all_that_a_module_gives_of_one_picture() -> None:
    (forward,) = lay_out_arrays(PICTURES, [2, 0], argument="pixel_values", layout=Layout.PADDED_RIGHT, device="cpu")
    assert torch.equal(forward.inputs["pixel_values"], PICTURES[[2, 0]])
    for shape in [(2, 5, 4), (2, 4), (2, 3, 7, 7), (2, 4, 1, 1)]:
        output = torch.randn(shape)
        assert torch.equal(to_tokens(output, forward), output.flatten(1))  # type: ignore[arg-type]
    assert is_second_map(torch.zeros(2, 4, 5, 5), forward)
    singles = lay_out_arrays(PICTURES, [2, 0], argument="pixel_values", layout=Layout.SINGLE, device="cpu")
    assert [single.texts for single in singles] == [(2,), (0,)]
    assert behind_decoder_start(forward, 7).tolist() == [[7], [7]]


def test_pictures_are_pooled_over_their_places_or_pixels() -> None:
    (forward,) = lay_out_arrays(PICTURES, range(3), argument="pixel_values", layout=Layout.PADDED_RIGHT, device="cpu")
    tokens_BTD, pixels_BDHW = torch.randn(3, 5, 4), torch.randn(3, 4, 2, 2)
    torch.testing.assert_close(embeddings(tokens_BTD, forward, None, Pooling.MEAN), tokens_BTD.double().mean(1))
    assert torch.equal(embeddings(tokens_BTD, forward, None, Pooling.CLS), tokens_BTD.double()[:, 0])
    torch.testing.assert_close(
        embeddings(pixels_BDHW, forward, None, Pooling.MEAN), pixels_BDHW.double().mean(dim=(2, 3))
    )
