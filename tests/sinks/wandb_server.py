"""A loopback stand-in for the W&B server: answers what the client asks in `wandb sync` and in an online run.

It keeps what was uploaded, so that a test reads what a real server would have received.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ENTITY = "me"


class WandbServer(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1.

    Attributes:
        files: run id -> file of the stream (`wandb-history.jsonl`, `wandb-summary.json`) -> its lines, parsed.
        runs: run id -> the fields of its last `upsertBucket`: config, group, job type, display name, host, ...
        uploads: name -> content of the other files that were put.
        exit_codes: run id -> exit code at its end.
        views: name -> the variables of each `upsertView`.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, dict[str, list[Any]]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.uploads: dict[str, bytes] = {}
        self.exit_codes: dict[str, int] = {}
        self.views: dict[str, list[dict[str, Any]]] = {}

    def handle_error(self, request: Any, client_address: Any) -> None:
        """The client resets its idle connections when it ends; anything else is worth a traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """A running server; closed at the end, after which connections are refused."""
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def log_message(self, *_: Any) -> None:
        """Nothing on standard error."""

    def do_GET(self) -> None:
        self._answer({})

    def do_PUT(self) -> None:
        self.server.uploads[self.path.removeprefix("/upload/")] = self._body()
        self._answer({})

    def do_POST(self) -> None:
        body = self._body()
        if self.path.startswith("/graphql"):
            self._answer({"data": self._graphql(json.loads(body))})
        elif "file_stream" in self.path:
            self._file_stream(json.loads(body))
            self._answer({"limits": {}})
        else:
            self._answer({})

    def _body(self) -> bytes:
        body = self._chunks() if self.headers.get("Transfer-Encoding") == "chunked" else self._sized()
        return gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body

    def _sized(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunks(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: Any) -> None:
        data = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _file_stream(self, body: dict[str, Any]) -> None:
        run_id = self.path.split("/")[-2]
        stored = self.server.files.setdefault(run_id, {})
        for name, part in (body.get("files") or {}).items():
            stored.setdefault(name, []).extend(json.loads(line) for line in part["content"] if line.startswith("{"))
        if body.get("complete"):
            self.server.exit_codes[run_id] = body["exitcode"]

    def _graphql(self, request: dict[str, Any]) -> dict[str, Any]:
        query, variables = request["query"], request.get("variables") or {}
        answers = {
            "viewer": lambda: {"viewer": _viewer()},
            "serverInfo": lambda: {"serverInfo": _server_info()},
            "upsertView": lambda: {"upsertView": self._view(variables)},
            "upsertBucket": lambda: {"upsertBucket": self._upsert(variables)},
            "createRunFiles": lambda: {"createRunFiles": self._run_files(variables["files"])},
            "createArtifact": lambda: {"createArtifact": {"artifact": _artifact()}},
            "createArtifactManifest": lambda: {"createArtifactManifest": {"artifactManifest": self._manifest()}},
            "createArtifactFiles": lambda: {"createArtifactFiles": self._artifact_files(variables)},
            "commitArtifact": lambda: {"commitArtifact": {"artifact": {"id": "A1", "digest": "digest"}}},
        }
        data: dict[str, Any] = {"model": {"id": "P1", "name": "p", "entity": _entity(), "bucket": None}}
        data["project"] = {"artifact": None, "run": {"stopped": False}}
        for field, answer in answers.items():
            if re.search(rf"\b{field}\b\s*[({{]", query):
                data |= answer()
        return data

    def _view(self, variables: dict[str, Any]) -> dict[str, Any]:
        name = variables["name"]
        new = name not in self.server.views
        self.server.views.setdefault(name, []).append(variables)
        return {"view": {"id": f"V{name}", "name": name}, "inserted": new}

    def _upsert(self, variables: dict[str, Any]) -> dict[str, Any]:
        run_id = variables["name"]
        new = run_id not in self.server.runs
        self.server.runs.setdefault(run_id, {}).update({k: v for k, v in variables.items() if v is not None})
        bucket = {
            "id": f"B{run_id}",
            "name": run_id,
            "displayName": variables.get("displayName") or run_id,
            "description": "",
            "config": variables.get("config") or "{}",
            "sweepName": None,
            "historyLineCount": 0,
            "project": {"id": "P1", "name": variables.get("project") or "p", "entity": _entity()},
        }
        return {"bucket": bucket, "inserted": new}

    def _run_files(self, names: list[str]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.server.url}/upload/{name}"} for name in names]
        return {"runID": "r", "uploadHeaders": [], "files": files}

    def _manifest(self) -> dict[str, Any]:
        url = f"{self.server.url}/upload/manifest"
        return {
            "id": "M1",
            "file": {"id": "F1", "name": "m", "displayName": "m", "uploadUrl": url, "uploadHeaders": []},
        }

    def _artifact_files(self, variables: dict[str, Any]) -> dict[str, Any]:
        specs = variables.get("artifactFiles") or variables["input"]["artifactFiles"]
        nodes = [self._artifact_file(number, spec["name"]) for number, spec in enumerate(specs)]
        return {"files": {"edges": [{"node": node} for node in nodes]}}

    def _artifact_file(self, number: int, name: str) -> dict[str, Any]:
        return {
            "id": f"F{number}",
            "name": name,
            "displayName": name,
            "uploadUrl": f"{self.server.url}/upload/artifact/{name}",
            "uploadHeaders": [],
            "storagePath": "x",
            "uploadMultipartUrls": None,
            "artifact": {"id": "A1"},
        }


def _entity() -> dict[str, str]:
    return {"id": "E1", "name": ENTITY}


def _viewer() -> dict[str, Any]:
    return {"id": "U1", "entity": ENTITY, "username": ENTITY, "flags": "{}", "teams": {"edges": []}}


def _server_info() -> dict[str, Any]:
    return {"cliVersionInfo": {"max_cli_version": "99.0.0"}, "latestLocalVersionInfo": None, "features": []}


def _artifact() -> dict[str, Any]:
    sequence = {"id": "S1", "latestArtifact": None}
    return {"id": "A1", "state": "PENDING", "artifactSequence": sequence}
