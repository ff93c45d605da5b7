"""A model of the Hugging Face hub, read from the hub's own local cache where the hub cannot be reached."""

from __future__ import annotations

import contextlib
import glob
import hashlib
from collections.abc import Callable
from pathlib import Path

import httpx
from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sweeper.checkpoints import cache, folder, hashes
from sweeper.config import HubCheckpoint
from sweeper.errors import CheckpointError, ConfigError

_SHA256_LETTERS = 64
_ANSWER_TIMEOUT_S = 10.0  # for the one question that tells whether the hub is there
_UNREACHABLE = (httpx.TransportError, HfHubHTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError)


def prepare(checkpoint: HubCheckpoint, say: Callable[[str], None]) -> tuple[Path, str, str]:
    """The snapshot's folder, `commit:<hex>` that `revision` stood for, and the hash of all its files.

    Raises:
        ConfigError: no such repository or revision, as far as this user may see.
        CheckpointError: the hub cannot be reached and the model is not in its local cache; or it has no safetensors.
    """
    path = _snapshot_of(checkpoint, say)
    folder.require_weights(path)
    return path, f"commit:{path.name}", _verified(path)  # the hub names a snapshot's folder after its commit


def _verified(path: Path) -> str:
    """The hash of a snapshot's files, each of which is what the hub has; read once, then only where one has changed.

    The hub's own cache keeps large files under the name of their SHA-256.

    Raises:
        CheckpointError: a file is not what the hub gave.
    """
    at = cache.hashes_path(f"hub-{hashlib.sha256(str(path).encode()).hexdigest()[:16]}")
    try:
        known = hashes.read_kept(at)
    except ValueError:
        known = None
    now = hashes.hash_files(path, folder.deciding_files(path), known)
    for name, file in now.files.items():
        blob = (path / name).resolve()
        if len(blob.name) == _SHA256_LETTERS and blob.parent.name == "blobs" and blob.name != file.sha256:
            raise CheckpointError(
                f"{path / name} is not what the hub gave: its SHA-256 is {file.sha256[:12]}..., not "
                f"{blob.name[:12]}...; delete {blob}, and it is fetched again"
            )
    if now != known:
        with contextlib.suppress(OSError):  # only time is lost where it cannot be kept
            hashes.keep(at, now)
    return now.digest


def describe(checkpoint: HubCheckpoint) -> Path:
    """A folder with the snapshot's small files, which say what the model is: no weight is fetched.

    Raises:
        ConfigError, CheckpointError: see `prepare`.
    """
    return _snapshot_of(checkpoint, None)


def _snapshot_of(checkpoint: HubCheckpoint, say: Callable[[str], None] | None) -> Path:
    """The snapshot's folder; without its weights where there is nobody to tell that they are fetched."""
    repo_id, revision = checkpoint.repo_id, checkpoint.revision
    try:
        return _fetch(repo_id, revision, say)
    except RepositoryNotFoundError:  # gated ones too
        raise ConfigError(
            f"checkpoint.repo_id: the hub has no {repo_id} that you may read; check the id, or type: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise ConfigError(f"checkpoint.revision: {repo_id} has no branch, tag or commit {revision!r}") from None
    except HFValidationError as error:
        raise ConfigError(f"checkpoint.repo_id: {error}") from None
    except _UNREACHABLE as error:
        raise CheckpointError(
            f"the Hugging Face hub cannot be reached ({_first_line(error)}) and {repo_id} at {revision} is not in its "
            "local cache; checkpoint=smollm2_135m_instruct needs no hub"
        ) from None


def _fetch(repo_id: str, revision: str, say: Callable[[str], None] | None) -> Path:
    try:
        info = HfApi().model_info(repo_id, revision=revision, timeout=_ANSWER_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except _UNREACHABLE as error:
        for name in ("config.json", "adapter_config.json"):
            cached = try_to_load_from_cache(repo_id, name, revision=revision, cache_dir=constants.HF_HUB_CACHE)
            if isinstance(cached, str):
                return Path(cached).parent
        raise error from None
    names = [sibling.rfilename for sibling in info.siblings or ()]
    _require_safetensors(repo_id, names)
    if say is not None:
        say(f"fetching {repo_id} at {revision} from the Hugging Face hub, unless it is in the hub's local cache")
    exact = [glob.escape(name) for name in folder.wanted(names, weights=say is not None)]
    return Path(snapshot_download(repo_id, revision=revision, allow_patterns=exact))


def _require_safetensors(repo_id: str, names: list[str]) -> None:
    """Refuses a repository without safetensors, before a byte of it is fetched."""
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        held = ", ".join(names) or "nothing"
        raise CheckpointError(
            f"{repo_id} has no *.safetensors, the only weights that are read{_how(names)} (it holds: {held})"
        )


def _how(names: list[str]) -> str:
    """What to do about a repository of GGUF files."""
    is_gguf = any(name.endswith(".gguf") for name in names)
    return "; fetch one GGUF file of it with `hf download`, and type checkpoint=PATH/FILE.gguf" if is_gguf else ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
