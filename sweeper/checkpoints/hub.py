"""A model of the Hugging Face hub, read from the hub's own local cache where the hub cannot be reached."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import httpx
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from sweeper.checkpoints import folder
from sweeper.config import HubCheckpoint
from sweeper.errors import CheckpointError, ConfigError

_ANSWER_TIMEOUT_S = 10.0  # for the one question that tells whether the hub is there
_UNREACHABLE = (httpx.TransportError, HfHubHTTPError, OfflineModeIsEnabled, LocalEntryNotFoundError)


def prepare(checkpoint: HubCheckpoint, say: Callable[[str], None]) -> tuple[Path, str]:
    """The snapshot's folder, and `commit:<hex>` that `revision` stood for.

    Raises:
        ConfigError: no such repository or revision, as far as this user may see.
        CheckpointError: the hub cannot be reached and the model is not in its local cache; or it has no safetensors.
    """
    repo_id, revision = checkpoint.repo_id, checkpoint.revision
    try:
        path = _fetch(repo_id, revision, say)
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
    folder.require_weights(path)
    return path, f"commit:{path.name}"  # the hub names a snapshot's folder after its commit


def _fetch(repo_id: str, revision: str, say: Callable[[str], None]) -> Path:
    try:
        info = HfApi().model_info(repo_id, revision=revision, timeout=_ANSWER_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except _UNREACHABLE as error:
        try:
            return _snapshot(repo_id, revision, local_files_only=True)
        except LocalEntryNotFoundError:
            raise error from None
    _require_safetensors(repo_id, [sibling.rfilename for sibling in info.siblings or ()])
    say(f"fetching {repo_id} at {revision} from the Hugging Face hub, unless it is in the hub's local cache")
    return _snapshot(repo_id, revision, local_files_only=False)


def _snapshot(repo_id: str, revision: str, *, local_files_only: bool) -> Path:
    path = snapshot_download(
        repo_id,
        revision=revision,
        local_files_only=local_files_only,
        allow_patterns=list(folder.FILES),
        ignore_patterns=["*/*"],  # subfolders hold other formats
    )
    return Path(path)


def _require_safetensors(repo_id: str, names: list[str]) -> None:
    """Before a byte of it is fetched."""
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        held = ", ".join(names) or "nothing"
        raise CheckpointError(f"{repo_id} has no *.safetensors, the only weights that are read (it holds: {held})")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
