"""Nothing random is measured: what the files lack, and what they hold beside it, stops the cell by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sweeper.errors import CheckpointError, UnsupportedError
from sweeper.models.pretrained import whole_model
from tests.tiny_folders import call, cell_of, folder_of

OPTIONS: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


def loaded(folder: Path, **checkpoint: Any) -> Any:
    return whole_model(folder, cell_of(folder, **checkpoint).checkpoint, OPTIONS).eval()


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """A copy of a folder whose weights, and config, were changed."""

    def edit(name: str, change: Callable[[dict[str, Tensor]], object], **config: Any) -> Path:
        folder = Path(shutil.copytree(folder_of(name), tmp_path / name))
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        saved = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(saved | config))
        return folder

    return edit


@pytest.mark.parametrize("head", ["causal_lm", "masked_lm"])
def test_a_base_model_under_a_head_is_refused_with_what_to_type(head: str) -> None:
    name = {"causal_lm": "qwen3_base", "masked_lm": "bert_base"}[head]
    with pytest.raises(
        CheckpointError, match=r"would be drawn at random; .*saved as \w+Model: type checkpoint.head=base"
    ):
        loaded(folder_of(name), head=head)


def test_a_missing_weight_is_refused_by_name(edited: Callable[..., Path]) -> None:
    folder = edited("llama", lambda weights: weights.pop("model.layers.1.mlp.up_proj.weight"))
    words = r"lacks model\.layers\.1\.mlp\.up_proj\.weight of LlamaForCausalLM, .*save the model again"
    with pytest.raises(CheckpointError, match=words):
        loaded(folder, head="causal_lm")


def test_many_missing_weights_are_counted(edited: Callable[..., Path]) -> None:
    def drop(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if ".layers.0." in name]:
            del weights[name]

    with pytest.raises(CheckpointError, match=r"\w, \S+, \S+ and 6 more weights of LlamaForCausalLM"):
        loaded(edited("llama", drop), head="causal_lm")


def test_a_weight_without_a_place_is_refused_unless_it_is_left_out(edited: Callable[..., Path]) -> None:
    folder = edited("llama", lambda weights: weights.update({"model.layers.0.extra.weight": torch.ones(2)}))
    with pytest.raises(
        CheckpointError, match=r"holds model\.layers\.0\.extra\.weight, for which .*has no place"
    ) as caught:
        loaded(folder, head="causal_lm")
    assert "'checkpoint.ignore_weights=[model.layers.*.extra.weight]'" in str(caught.value)
    loaded(folder, head="causal_lm", ignore_weights=["model.layers.*.extra.weight"])
    with pytest.raises(CheckpointError, match=r"extra\.weight"):  # no head is left out with it
        loaded(folder, head="base")


def test_weights_of_other_shapes_are_refused_by_name(edited: Callable[..., Path]) -> None:
    folder = edited("llama", lambda _weights: None, intermediate_size=40)
    with pytest.raises(CheckpointError, match=r"other shapes.*mlp\.down_proj\.weight \(32, 48\) where \(32, 40\)"):
        loaded(folder, head="causal_lm")


def test_the_head_may_stay_in_the_files() -> None:
    assert type(loaded(folder_of("llama"), head="base")).__name__ == "LlamaModel"


def test_a_pooler_that_the_files_lack_is_left_out_and_changes_no_hidden_state(edited: Callable[..., Path]) -> None:
    def drop(weights: dict[str, Tensor]) -> None:
        for name in [name for name in weights if name.startswith("pooler.")]:
            del weights[name]

    whole, without = loaded(folder_of("bert_base"), head="base"), loaded(edited("bert_base", drop), head="base")
    assert whole.pooler is not None
    assert without.pooler is None
    with torch.inference_mode():
        assert torch.equal(whole(**call()).last_hidden_state, without(**call()).last_hidden_state)


def test_a_head_that_there_is_not_is_unsupported() -> None:
    with pytest.raises(
        UnsupportedError, match=r"no masked_lm of llama; .* saved as LlamaForCausalLM: type checkpoint\."
    ):
        loaded(folder_of("llama"), head="masked_lm")


def test_an_architecture_that_is_not_known_is_unsupported(edited: Callable[..., Path]) -> None:
    folder = edited("llama", lambda _weights: None, model_type="llama9")
    with pytest.raises(UnsupportedError, match=r"transformers \S+ cannot read .*llama9"):
        loaded(folder, head="causal_lm")
