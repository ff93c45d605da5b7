"""The real client of the hub, against a small hub on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from sweeper.checkpoints import LocalCheckpoint, prepare, settled
from sweeper.config import Head, HubCheckpoint, Pooling
from sweeper.errors import CheckpointError, ConfigError

COMMIT = "c0ffee" + "0" * 34
REPOSITORIES = {
    "lab/model": {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"a pickle",
        "modeling_custom.py": b"raise SystemExit",
        "onnx/model.safetensors": b"another format",
        "modules.json": b"[]",
        "1_Pooling/config.json": b"{}",
    },
    "lab/llama": {
        "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}',
        "model.safetensors": b"weights",
    },
    "lab/adapter": {
        "adapter_config.json": b'{"base_model_name_or_path": "lab/llama"}',
        "adapter_model.safetensors": b"a few weights",
    },
    "lab/gguf": {"model-q4.gguf": b"GGUF"},
    "lab/pickled": {"config.json": b"{}", "pytorch_model.bin": b"a pickle"},
}


class SmallHub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._answer_api("/".join(parts[2:4]), parts[4], parts[5])
        else:
            content = REPOSITORIES["/".join(parts[:2])]["/".join(parts[4:])]
            self._send(200, content, {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": COMMIT})

    def _answer_api(self, repo_id: str, question: str, revision: str) -> None:
        files = REPOSITORIES.get(repo_id)
        if files is None:
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif revision not in ("main", COMMIT):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif question == "revision":
            siblings = [{"rfilename": name} for name in files]
            self._send_json({"id": repo_id, "sha": COMMIT, "siblings": siblings})
        else:
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
                for name, content in files.items()
            ]
            self._send_json(entries)

    def _send_json(self, answer: object) -> None:
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _blob_id(content: bytes) -> str:
    """The hub's id of a file: of a large one its SHA-256."""
    return (hashlib.sha256 if content == b"weights" else hashlib.sha1)(content).hexdigest()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    yield server
    server.shutdown()
    server.server_close()


def fetched(repo_id: str = "lab/model", revision: str = "main") -> LocalCheckpoint:
    checkpoint = HubCheckpoint(
        source="hub", name="hub", repo_id=repo_id, revision=revision, head="base", pooling="last_token"
    )
    return prepare(checkpoint, device="cpu", say=lambda _: None)


def test_fetches_weights_config_and_tokenizer_and_records_the_commit(hub: ThreadingHTTPServer) -> None:
    local = fetched()
    names = sorted(str(file.relative_to(local.folder)) for file in local.folder.rglob("*") if not file.is_dir())
    assert names == ["1_Pooling/config.json", "config.json", "model.safetensors", "modules.json", "tokenizer.json"]
    assert (local.folder / "model.safetensors").read_bytes() == b"weights"
    assert local.revision == f"commit:{COMMIT}"
    assert local.has_tokenizer


@pytest.mark.parametrize("how", ["unreachable", "offline"])
def test_without_the_hub_its_local_cache_is_used(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    online = fetched()
    cut_off(hub, monkeypatch, how)
    assert fetched() == online
    assert fetched(revision=COMMIT) == online


@pytest.mark.parametrize("how", ["unreachable", "offline"])
def test_without_the_hub_and_a_cached_copy_one_line_says_what_works(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    cut_off(hub, monkeypatch, how)
    with pytest.raises(CheckpointError, match=r"cannot be reached .*checkpoint=smollm2_135m_instruct") as error:
        fetched()
    assert "\n" not in str(error.value)


def cut_off(hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        hub.shutdown()
        hub.server_close()


def test_a_repository_without_safetensors_is_refused_before_it_is_fetched(
    hub: ThreadingHTTPServer, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"lab/pickled has no \*\.safetensors.*pytorch_model\.bin"):
        fetched("lab/pickled")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("repo_id", "revision", "message"),
    [
        ("lab/nothing", "main", "checkpoint.repo_id: the hub has no lab/nothing"),
        ("lab/model", "v9", "checkpoint.revision: lab/model has no branch, tag or commit 'v9'"),
    ],
)
def test_what_the_hub_does_not_have_is_a_config_error(
    hub: ThreadingHTTPServer, repo_id: str, revision: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as error:
        fetched(repo_id, revision)
    assert "\n" not in str(error.value)


def test_what_a_model_is_can_be_asked_without_its_weights(hub: ThreadingHTTPServer) -> None:
    checkpoint = HubCheckpoint(source="hub", name="hub", repo_id="lab/llama", pooling="cls")
    found, folder = settled(checkpoint, lambda _: None)
    assert folder is not None
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert (found.head, found.causal, found.pooling) == (Head.CAUSAL_LM, True, Pooling.CLS)
    assert settled(found, lambda _: None) == (found, folder)


@pytest.mark.parametrize("how", ["reachable", "unreachable", "offline"])
def test_an_adapter_comes_with_the_base_that_it_names(
    hub: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, how: str
) -> None:
    monkeypatch.setenv("SWEEPER_CACHE", str(tmp_path / "cache"))
    if how != "reachable":
        fetched("lab/adapter")
        cut_off(hub, monkeypatch, how)
    local = fetched("lab/adapter")
    assert (local.folder / "model.safetensors").read_bytes() == b"weights"
    assert (local.folder / "adapter_model.safetensors").read_bytes() == b"a few weights"
    assert local.revision == f"commit:{COMMIT}+commit:{COMMIT}"
    found, folder = settled(HubCheckpoint(source="hub", name="hub", repo_id="lab/adapter"), lambda _: None)
    assert isinstance(found, HubCheckpoint)
    assert (found.head, found.base) == (Head.CAUSAL_LM, "lab/llama")
    assert folder is not None
    if how == "reachable":
        assert not list(folder.glob("*.safetensors"))


def test_a_repository_of_gguf_files_says_how_one_is_read(hub: ThreadingHTTPServer) -> None:
    with pytest.raises(
        CheckpointError, match=r"fetch one GGUF file of it with `hf download`, and type checkpoint=PATH"
    ):
        fetched("lab/gguf")


def test_a_bit_of_the_hubs_cache_that_turned_over_is_found(hub: ThreadingHTTPServer) -> None:
    local = fetched()
    assert fetched().files_sha256 == local.files_sha256
    weights = (local.folder / "model.safetensors").resolve()
    weights.write_bytes(b"weightt")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not what the hub gave.*delete .*fetched again"):
        fetched()
