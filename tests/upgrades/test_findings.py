"""`sweeper compare` on sweeps of the tiny Llama: the same again, a planted change of both sides, and what is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers.models.llama import modeling_llama

from sweeper.cli.main import dispatch
from sweeper.cli.run import carry_out
from sweeper.records.recording import Recording
from sweeper.records.sweep import Sweep
from sweeper.upgrades.findings import compare_sweeps
from sweeper.upgrades.report import lines
from tests.composing import request_of

TINY = ("checkpoint=tiny_llama", "wandb.mode=disabled", "latency_repeats=0", "inputs=token_ids")
IDS = "inputs.token_ids=[[5,6,7,8,9,10,11,12,13,14,15,16],[20,21,22,23,24,25,26]]"


def sweep(folder: Path, *choices: str, code: int = 0) -> Path:
    request = request_of(*TINY, IDS, *(choices or ("record=true",)), f"output_dir={folder}", "sweep=s")
    assert carry_out(request) == code
    return folder / "single" / "s"


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweep(tmp_path_factory.mktemp("old"), "record=true", "attention=sdpa,eager")


@pytest.fixture
def other_norms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another library: its RMSNorm takes another eps than the config's, in reference and candidate alike."""
    original = modeling_llama.LlamaRMSNorm.__init__

    def planted(self: torch.nn.Module, hidden_size: int, eps: float = 1e-6) -> None:
        original(self, hidden_size, eps=1e-6)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "__init__", planted)


def test_the_same_twice_is_the_same_bits(old: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = sweep(tmp_path, "record=true", "attention=sdpa,eager")
    capsys.readouterr()
    assert dispatch(["compare", str(old), str(again)]) == 0
    said = capsys.readouterr().out
    assert "the environments are the same" in said
    assert "same bits, 2 cells: every recorded number is the same" in said
    assert said.rstrip().endswith("exit code 0: no regression")


def test_a_change_that_moves_both_sides_alike_is_a_regression(
    old: Path, tmp_path: Path, other_norms: None, capsys: pytest.CaptureFixture[str]
) -> None:
    new = sweep(tmp_path, "record=true", "attention=sdpa,eager")
    verdicts = [[record.verdict and record.verdict.kind for record in Sweep.read(side).records] for side in (old, new)]
    assert verdicts[0] == verdicts[1]  # nothing is seen in the sweep itself
    capsys.readouterr()
    assert dispatch(["compare", str(old), str(new), "--json", str(tmp_path / "found.json")]) == 1
    said = capsys.readouterr().out
    assert "REGRESSION, another function, 2 cells" in said
    assert "since model.layers.0.input_layernorm" in said
    assert "exit code 1: 2 regressions" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["exit_code"] == 1
    assert {cell["kind"] for cell in found["cells"]} == {"another function"}
    assert all(cell["float64_rel_l2"] > 1e3 * cell["float64_noise"] for cell in found["cells"])


def test_without_recordings_it_says_what_is_not_seen(tmp_path: Path) -> None:
    first, second = (sweep(tmp_path / name, "verdict=false") for name in ("a", "b"))
    upgrade = compare_sweeps(Sweep.read(first), Sweep.read(second))
    assert [change.kind for change in upgrade.cells] == ["unrecorded"]
    assert upgrade.exit_code == 0
    assert any("record=true" in line for line in lines(upgrade))


def test_a_cell_of_old_that_new_lacks_is_no_success(old: Path, tmp_path: Path) -> None:
    new = sweep(tmp_path, "record=true")
    upgrade = compare_sweeps(Sweep.read(old), Sweep.read(new))
    assert upgrade.exit_code == 1
    assert lines(upgrade)[-1] == "exit code 1: 1 cells of OLD are not in NEW"


def test_every_difference_of_the_environments_is_named(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "single" / "s"
    shutil.copytree(old, new)
    for path in new.glob("cells/*/cell.json"):
        record = json.loads(path.read_text())
        record["environment"] |= {"transformers": "9.9.9", "tokenizers": None, "flavour": "new"}
        record["checkpoint_revision"] = "sha256:other"
        path.write_text(json.dumps(record))
    for sums in new.glob("cells/*/SHA256SUMS"):
        sums.unlink()
    upgrade = compare_sweeps(Sweep.read(old), Sweep.read(new))
    named = {change.name: change.new for change in upgrade.environment}
    assert named.keys() == {"transformers", "tokenizers", "flavour", "weights of tiny_llama"}
    assert "  flavour none -> new" in lines(upgrade)


def test_rounding_of_another_kernel_is_no_regression(old: Path, tmp_path: Path) -> None:
    """The sdpa cell's recording in the eager cell's place: what another kernel gives."""
    new = tmp_path / "single" / "s"
    shutil.copytree(old, new)
    sdpa, eager = (
        next(record.cell_id for record in Sweep.read(old).records if record.axes["attention"] == name)
        for name in ("sdpa", "eager")
    )
    shutil.copy(old / "recordings" / f"{sdpa}.safetensors", new / "recordings" / f"{eager}.safetensors")
    upgrade = compare_sweeps(Sweep.read(old), Sweep.read(new))
    kinds = {change.pair.old.axes["attention"]: change for change in upgrade.cells}
    assert kinds["eager"].kind == "other rounding"
    assert kinds["eager"].since == "model.layers.0.self_attn.o_proj"
    assert upgrade.exit_code == 0


def test_other_tokens_and_a_cell_that_no_longer_runs_are_regressions(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "single" / "s"
    shutil.copytree(old, new)
    first, second = (record.cell_id for record in Sweep.read(old).records)
    recording = Recording.read(new / "recordings" / f"{first}.safetensors")
    recording.token_ids[0][0] += 1
    recording.write(new / "recordings" / f"{first}.safetensors")
    path = new / "cells" / second / "cell.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"status": "failed", "reason": "ValueError: no"}))
    (path.parent / "SHA256SUMS").unlink(missing_ok=True)
    upgrade = compare_sweeps(Sweep.read(old), Sweep.read(new))
    assert [change.kind for change in upgrade.cells] == ["does not run", "other tokens"]
    assert upgrade.exit_code == 1


def test_outputs_that_are_nan_throughout_and_tables_of_other_lengths_are_compared_and_written(
    old: Path, tmp_path: Path
) -> None:
    new = tmp_path / "single" / "s"
    shutil.copytree(old, new)
    nan, longer = (new / "recordings" / f"{record.cell_id}.safetensors" for record in Sweep.read(old).records)
    recording = Recording.read(nan)
    recording.tensors["logits"].fill_(torch.nan)
    recording.write(nan)
    recording = Recording.read(longer)
    name = next(iter(recording.about["state"]))
    recording.about["state"][name].append(1.0)
    recording.write(longer)
    assert dispatch(["compare", str(old), str(new), "--json", str(tmp_path / "found.json")]) == 1
    cells = json.loads((tmp_path / "found.json").read_text())["cells"]
    assert [cell["kind"] for cell in cells] == ["beyond its noise", "same bits"]
    assert cells[1]["tables"] == {name: None}


def test_a_folder_without_a_sweep_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert dispatch(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert "no sweep.json in it" in capsys.readouterr().err
