from __future__ import annotations

import pytest
import yaml

from sweeper.checkpoints.seeded import model_config
from sweeper.config import Checkpoint, Dtype, Head, Pooling, SeededCheckpoint, parse
from tests.checkpoints.conftest import CONF, shipped

FILES = sorted(CONF.glob("*.yaml"))
NAMES = {
    *("smollm2_135m_instruct", "smollm2_135m", "qwen3_embedding_0_6b", "qwen3_0_6b_geometry", "minilm"),
    *("llama_8b_geometry", "llama_26b_geometry"),
    *("tiny_llama", "tiny_qwen3", "tiny_bert", "hub", "folder"),
    *("operator", "operator_fa3", "operator_matmul_10240", "operator_norm", "operator_norm_torch"),
    *("operator_cast_add", "operator_row", "operator_row_alone"),
}


def test_every_checkpoint_is_shipped() -> None:
    assert {file.stem for file in FILES} == NAMES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_file_is_valid_and_named_after_its_checkpoint(file) -> None:
    data = yaml.safe_load(file.read_text())
    data = {key: "given/by-user" if value == "???" else value for key, value in data.items()}
    checkpoint = parse(Checkpoint, data, "checkpoint")
    assert checkpoint.name == file.stem
    if isinstance(checkpoint, SeededCheckpoint):
        model_config(checkpoint)


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_qwen3", "tiny_bert"])
def test_tiny_models_have_heads_of_64_and_room_for_a_token_a_byte(name: str) -> None:
    config = model_config(shipped(name))
    assert getattr(config, "head_dim", config.hidden_size // config.num_attention_heads) == 64
    assert config.vocab_size >= 512


def test_the_encoders_say_that_they_are_no_decoders() -> None:
    checkpoint = shipped("tiny_bert")
    assert (checkpoint.causal, checkpoint.head, checkpoint.pooling) == (False, Head.BASE, Pooling.MEAN)


def test_the_real_geometry_is_drawn_on_the_device_and_holds_the_ids_of_report_2() -> None:
    checkpoint = shipped("qwen3_0_6b_geometry")
    assert checkpoint.init_on_device
    assert checkpoint.saved_dtype is Dtype.BFLOAT16
    assert model_config(checkpoint).vocab_size > 151643
