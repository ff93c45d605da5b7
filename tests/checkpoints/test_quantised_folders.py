"""Folders of quantised weights: what transformers loads runs as by its plain call; the rest is refused in its words."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, TorchAoConfig

from sweeper.errors import UnsupportedError
from sweeper.models import loading
from sweeper.models.loading import load
from sweeper.models.packages import QUANTIZERS, packages
from sweeper.models.weights import WeightsKey
from sweeper.planning.settle import Settler
from tests.checkpoints.grids import records_of, spied, unlike_plain
from tests.small_models import folder as llama_folder
from tests.tiny_folders import cell_of

pytestmark = pytest.mark.filterwarnings("ignore")
GRIDS = ["bf16_vs_fp32", "padding_vs_packing"]


@pytest.fixture(scope="module")
def int8(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of torchao, as save_pretrained writes it: int8 weights, a scale a row."""
    torchao = pytest.importorskip("torchao.quantization")
    config = TorchAoConfig(torchao.Int8WeightOnlyConfig(version=2))
    folder = tmp_path_factory.mktemp("torchao") / "int8"
    AutoModelForCausalLM.from_pretrained(
        llama_folder(), dtype=torch.bfloat16, quantization_config=config
    ).save_pretrained(folder)
    return folder


def stating(folder: Path, quantization: dict[str, Any]) -> Path:
    """The small Llama, with a config.json that states a quantisation."""
    shutil.copytree(llama_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
    return folder


@pytest.mark.parametrize("grid", GRIDS)
def test_the_grids_give_what_the_plain_call_gives(int8: Path, tmp_path: Path, grid: str) -> None:
    with spied():
        records = records_of(int8, tmp_path, grid, "dtype=float32,bfloat16")
        assert not unlike_plain(records, int8)
    assert Counter(record["status"] for record in records)["ok"] >= 12
    assert {record["status"] for record in records} == {"ok", "unsupported"}
    assert all(record["environment"]["torchao"] for record in records)


def test_the_weights_are_int8_and_their_package_is_in_the_id(int8: Path) -> None:
    settler = Settler(print)
    cell = settler.cell(cell_of(int8, load_strategy="dtype_at_load"))
    model = load(int8, WeightsKey.of(cell), "sdpa")
    weight: Any = model.get_parameter("model.layers.0.self_attn.q_proj.weight")
    assert type(weight).__name__ == "Int8Tensor"
    assert weight.qdata.dtype is torch.int8
    assert packages(cell) == QUANTIZERS["torchao"]
    assert settler.unsupported(cell) is None


@pytest.mark.parametrize(
    ("quantization", "absent", "install"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes", "pip install -U bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes", "pip install -U bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "optimum", "pip install optimum"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128}, "gptqmodel", "pip install gptqmodel"),
        ({"quant_method": "compressed-tensors"}, "compressed_tensors", "pip install compressed-tensors"),
        ({"quant_method": "hqq", "quant_config": {}}, "hqq", "hqq"),
        ({"quant_method": "of tomorrow"}, None, "Unknown quantization type"),
    ],
    ids=lambda value: str(value.get("quant_method")) if isinstance(value, dict) else None,
)
def test_what_is_missing_is_said_before_weights_are_read(
    tmp_path: Path, quantization: dict[str, Any], absent: str | None, install: str
) -> None:
    if absent is not None and _is_there(absent):
        pytest.skip(f"{absent} is installed")
    folder = stating(tmp_path / "folder", quantization)
    (folder / "model.safetensors").write_bytes(b"nobody reads this")
    settler = Settler(print)
    reason = settler.unsupported(settler.cell(cell_of(folder)))
    assert reason is not None
    assert reason.startswith(f"weights quantised with {quantization['quant_method']} cannot be loaded here: transform")
    assert install in reason
    assert "\n" not in reason


def _is_there(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None


def test_a_cast_that_transformers_forbids_is_unsupported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Models of bitsandbytes, GPTQ and Quark refuse `.to(dtype)`."""
    model = AutoModelForCausalLM.from_pretrained(llama_folder())
    model.quantization_method = "bitsandbytes"
    monkeypatch.setattr(loading, "whole_model", lambda *_: model)
    cell = cell_of(llama_folder(), load_strategy="cast_after_load", dtype="bfloat16")
    with pytest.raises(
        UnsupportedError, match=r"the weights cannot go to torch\.bfloat16: transformers says .You cannot"
    ):
        load(llama_folder(), WeightsKey.of(cell), "sdpa")


def test_another_error_of_a_move_is_no_matter_of_quantisation() -> None:
    class Broken(nn.Module):
        def to(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match="out of something"):
        loading._to(Broken(), torch.float32)


def test_fp8_blocks_run_dequantised_where_there_is_no_gpu(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("they run as they are")
    folder = _fp8(tmp_path / "fp8")
    with spied():
        records = records_of(
            folder, tmp_path, "load_strategy", "load_strategy=dtype_at_load,device_map", "dtype=bfloat16"
        )
        assert not unlike_plain(records, folder)
    assert {record["status"] for record in records} == {"ok"}, [record["reason"] for record in records]


def _fp8(folder: Path) -> Path:
    """A Llama whose projections are float8 in blocks of 32 x 32, with the scale of each block beside them."""
    from safetensors.torch import load_file, save_file

    stating(folder, {"quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic"})
    weights = load_file(folder / "model.safetensors")
    for name, weight in list(weights.items()):
        if "_proj" in name:
            rows, columns = weight.shape[0] // 32, weight.shape[1] // 32
            blocks = weight.float().reshape(rows, 32, columns, 32)
            scale = blocks.abs().amax((1, 3)) / 448
            stored = (blocks / scale[:, None, :, None]).reshape(weight.shape).to(torch.float8_e4m3fn)
            weights |= {name: stored, f"{name}_scale_inv": scale}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder
