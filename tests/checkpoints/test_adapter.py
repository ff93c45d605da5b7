"""Adapters of PEFT: loaded with their base, as `from_pretrained` of the adapter's folder does, or refused."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from sweeper.checkpoints import prepare, settled
from sweeper.config import FolderCheckpoint, Head
from sweeper.errors import CheckpointError, ConfigError
from sweeper.models import family
from sweeper.models.packages import ADAPTERS, packages
from sweeper.planning.plan import CellIds
from sweeper.planning.settle import Settler
from tests.checkpoints.grids import records_of, spied, unlike_plain
from tests.small_models import folder as llama_folder
from tests.tiny_folders import cell_of

peft = pytest.importorskip("peft")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base/` and `adapter/`, as save_pretrained leaves them; not to be changed."""
    root = tmp_path_factory.mktemp("peft")
    shutil.copytree(llama_folder(), root / "base")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    base = LlamaForCausalLM.from_pretrained(root / "base", dtype=torch.float32)
    peft.get_peft_model(base, config).save_pretrained(root / "adapter")
    return root


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def own(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may change; its adapter names the copied base."""
    shutil.copytree(saved, tmp_path / "own")
    rename_base(tmp_path / "own", str(tmp_path / "own" / "base"))
    return tmp_path / "own"


def rename_base(root: Path, name: str | None) -> None:
    path = root / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": name}))


def checkpoint(path: Path, **more: Any) -> FolderCheckpoint:
    return FolderCheckpoint(source="folder", name="mine", path=str(path), **more)


@pytest.mark.parametrize("grid", ["bf16_vs_fp32", "padding_vs_packing"])
def test_the_grids_give_what_from_pretrained_of_the_adapter_gives(saved: Path, tmp_path: Path, grid: str) -> None:
    with spied():
        records = records_of(saved / "adapter", tmp_path, grid, "dtype=float32,bfloat16")
        assert not unlike_plain(records, saved / "adapter")
    assert Counter(record["status"] for record in records)["ok"] >= 12
    assert {record["status"] for record in records} == {"ok", "unsupported"}
    assert all("+sha256:" in record["checkpoint_revision"] for record in records if record["status"] == "ok")


def test_the_adapter_acts(saved: Path) -> None:
    ids_BT = torch.tensor([[5, 6, 7]])
    plain = LlamaForCausalLM.from_pretrained(saved / "base")
    adapted = LlamaForCausalLM.from_pretrained(prepare(checkpoint(saved / "adapter"), device="cpu", say=print).folder)
    assert not torch.equal(plain(ids_BT).logits, adapted(ids_BT).logits)


def test_what_is_left_open_is_read_from_the_base(saved: Path) -> None:
    found, _ = settled(checkpoint(saved / "adapter"), print)
    assert isinstance(found, FolderCheckpoint)
    assert (found.head, found.causal, found.base) == (Head.CAUSAL_LM, True, str(saved / "base"))


def test_a_typed_base_wins(own: Path) -> None:
    shutil.copytree(own / "base", own / "other")
    rename_base(own, "/nowhere/at/all")
    with pytest.raises(CheckpointError, match=r"names the base model /nowhere/at/all, which is not here; type checkpo"):
        settled(checkpoint(own / "adapter"), print)
    found, _ = settled(checkpoint(own / "adapter", base=str(own / "other")), print)
    assert isinstance(found, FolderCheckpoint)
    assert found.base == str(own / "other")
    rename_base(own, None)
    with pytest.raises(CheckpointError, match=r"names no base model; type checkpoint.base=FOLDER"):
        settled(checkpoint(own / "adapter"), print)


@pytest.mark.parametrize("named", ["itself", "another adapter"])
def test_an_adapter_is_no_base(own: Path, named: str) -> None:
    base = own / "adapter"
    if named == "another adapter":
        base = own / "other"
        shutil.copytree(own / "adapter", base)
    rename_base(own, str(base))
    said = "itself" if named == "itself" else f"{base}, which is an adapter too"
    for use in (lambda: settled(checkpoint(own / "adapter"), print), lambda: prepared(own / "adapter")):
        with pytest.raises(CheckpointError, match=f"the base model of this adapter is {said}; type checkpoint.base="):
            use()


def prepared(path: Path) -> Any:
    return prepare(checkpoint(path), device="cpu", say=print)


def test_a_base_for_what_is_no_adapter_is_refused(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.base: .* is no adapter"):
        settled(checkpoint(saved / "base", base=str(saved)), print)


def test_a_weight_that_the_base_lacks_is_named(own: Path) -> None:
    weights = load_file(own / "base" / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, own / "base" / "model.safetensors", {"format": "pt"})
    (record, *_) = records_of(own / "adapter", own, "load_strategy", "load_strategy=dtype_at_load")
    assert record["status"] == "failed"
    assert "lacks model.layers.0.mlp.up_proj.weight of LlamaForCausalLM" in record["reason"]


def test_a_weight_that_the_adapter_lacks_is_named(own: Path) -> None:
    file = own / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    del weights["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    save_file(weights, file, {"format": "pt"})
    (record, *_) = records_of(own / "adapter", own, "load_strategy", "load_strategy=dtype_at_load")
    assert record["status"] == "failed"
    assert "layers.1.self_attn.v_proj.lora_B" in record["reason"]


def test_pickled_adapters_are_refused_by_name(own: Path) -> None:
    (own / "adapter" / "adapter_model.safetensors").rename(own / "adapter" / "adapter_model.bin")
    with pytest.raises(CheckpointError, match=r"adapter_model\.bin"):
        prepare(checkpoint(own / "adapter"), device="cpu", say=print)


def test_without_peft_no_cell_runs(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(family, "version", lambda _: None)
    settler = Settler(print)
    reason = settler.unsupported(settler.cell(cell_of(saved / "adapter")))
    assert reason == "an adapter needs the package peft, which is not installed: pip install peft"


def test_the_id_depends_on_peft_and_on_the_files_of_both(own: Path) -> None:
    settler = Settler(print)
    cell = settler.cell(cell_of(own / "adapter"))
    assert set(ADAPTERS) <= set(packages(cell))
    before = CellIds({}).of(cell)
    (own / "base" / "config.json").touch()
    after = CellIds({}).of(cell)
    (own / "adapter" / "adapter_config.json").touch()
    assert len({before, after, CellIds({}).of(cell)}) == 3


def test_the_adapters_own_tokenizer_stands_in_for_the_bases(own: Path) -> None:
    for place, content in (("base", "{}"), ("adapter", "[]")):
        (own / place / "tokenizer.json").write_text(content)
    (own / "base" / "tokenizer_config.json").write_text("{}")
    folder = prepare(checkpoint(own / "adapter"), device="cpu", say=print).folder
    assert (folder / "tokenizer.json").read_text() == "[]"
    assert not (folder / "tokenizer_config.json").exists()


def test_what_is_said_while_it_is_prepared_goes_where_it_was_asked_for(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[str] = []
    local = prepare(checkpoint(own / "adapter"), device="cpu", say=said.append)
    (local.folder / "config.json").unlink()
    assert prepare(checkpoint(own / "adapter"), device="cpu", say=said.append) == local
    assert said == [f"{local.folder}/config.json is missing; it is prepared again"]
    assert capsys.readouterr().out == "", "standard output is for the table"
