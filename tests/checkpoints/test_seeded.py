from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from sweeper.checkpoints import prepare
from sweeper.checkpoints.seeded import byte_tokenizer
from sweeper.config import Dtype
from sweeper.errors import ConfigError
from tests.checkpoints.conftest import shipped

TEXTS = ("Gravity is", "The capital of China is Beijing.")
TINY = ("tiny_llama", "tiny_qwen3", "tiny_bert")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", TINY)
def test_transformers_loads_model_and_tokenizer(cache_root: Path, name: str) -> None:
    local = prepare(shipped(name), device="cpu", say=print)
    assert local.revision.startswith("seeded:")
    assert local.has_tokenizer
    tokenizer = AutoTokenizer.from_pretrained(local.folder)
    assert tokenizer(TEXTS[0]).input_ids == list(TEXTS[0].encode())
    auto = AutoModelForCausalLM if name == "tiny_llama" else AutoModel
    model, report = auto.from_pretrained(local.folder, dtype="auto", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.dtype is torch.float32


@pytest.mark.parametrize("name", TINY)
def test_attention_is_not_uniform_and_outputs_depend_on_the_text(cache_root: Path, name: str) -> None:
    folder = prepare(shipped(name), device="cpu", say=print).folder
    model = AutoModel.from_pretrained(folder, attn_implementation="eager")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids_BT = tokenizer(list(TEXTS), return_tensors="pt", padding=True, padding_side="right").input_ids[:, :10]
    with torch.inference_mode():
        outputs = model(ids_BT, output_attentions=True, use_cache=False)
    last_row_LBHT = torch.stack(outputs.attentions)[..., -1, :]
    assert last_row_LBHT.std(dim=-1).mean() > 0.02  # uniform over 10 tokens: 0
    hidden_BTD = outputs.last_hidden_state
    assert torch.cosine_similarity(hidden_BTD[0, -1], hidden_BTD[1, -1], dim=0) < 0.99


def test_the_seed_decides_the_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for run, seed in enumerate((0, 0, 1)):
        monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / str(run)))
        built.append(prepare(shipped("tiny_llama", seed=seed), device="cpu", say=print))
    first, again, other = (weights(local.folder) for local in built)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert built[0].revision == built[1].revision != built[2].revision
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_saved_dtype_is_the_rounded_float32(cache_root: Path) -> None:
    float32 = weights(prepare(shipped("tiny_qwen3"), device="cpu", say=print).folder)
    local = prepare(shipped("tiny_qwen3", saved_dtype=Dtype.BFLOAT16), device="cpu", say=print)
    for name, weight in weights(local.folder).items():
        assert weight.dtype is torch.bfloat16
        assert torch.equal(weight, float32[name].to(torch.bfloat16))
    assert AutoModel.from_pretrained(local.folder, dtype="auto").dtype is torch.bfloat16


def test_the_global_generator_and_defaults_are_left_alone(cache_root: Path) -> None:
    torch.manual_seed(7)
    expected = torch.get_rng_state()
    prepare(shipped("tiny_bert"), device="cpu", say=print)
    assert torch.equal(torch.get_rng_state(), expected)
    assert torch.get_default_dtype() is torch.float32
    assert torch.empty(0).device.type == "cpu"


def test_a_vocabulary_without_room_for_bytes_has_no_tokenizer(cache_root: Path) -> None:
    geometry = {**shipped("tiny_llama").geometry, "vocab_size": 200}
    assert not prepare(shipped("tiny_llama", geometry=geometry), device="cpu", say=print).has_tokenizer


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_hiden_layers": 2},
            "num_hiden_layers: LlamaConfig has no such argument; did you mean num_hidden_layers?",
        ),
        ({"hidden_size": "wide"}, "checkpoint.geometry: hidden_size is a whole number of at least 1 .given: 'wide'."),
    ],
)
def test_a_wrong_geometry_is_one_clear_line(cache_root: Path, change: dict[str, object], message: str) -> None:
    geometry = {**shipped("tiny_llama").geometry, **change}
    with pytest.raises(ConfigError, match=message) as error:
        prepare(shipped("tiny_llama", geometry=geometry), device="cpu", say=print)
    assert "\n" not in str(error.value)


TOKENIZER = byte_tokenizer()


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_the_byte_tokenizer_is_the_text_in_bytes(text: str) -> None:
    ids = TOKENIZER(text).input_ids
    assert ids == list(text.encode())
    assert TOKENIZER.decode(ids) == text


PREPARE = """
import torch
from sweeper.checkpoints import prepare
from tests.checkpoints.conftest import shipped
torch.set_num_threads(1)
print(prepare(shipped("tiny_llama"), device="cpu", say=lambda line: print("said:", line)).folder)
"""


def test_two_processes_that_start_together_initialise_once(cache_root: Path) -> None:
    command = [sys.executable, "-c", PREPARE]
    root = Path(__file__).parents[2]
    processes = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("said: initialising" in output for output in outputs) == 1
    assert len({output.splitlines()[-1] for output in outputs}) == 1
