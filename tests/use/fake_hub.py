"""A hub on this machine: as much of its protocol as uploading a small folder and downloading it again takes."""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

COMMIT = "c" * 40


class FakeHub:
    """While the block lasts, `huggingface_hub` knows no other hub; what it holds lies below a folder."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = folder / "hub"
        handler = type("Handler", (_Handler,), {"root": self.root})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        url = f"http://127.0.0.1:{self._server.server_port}"
        constants = huggingface_hub.constants
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)

    def files(self, repo: str) -> set[str]:
        """The names of what a repository holds."""
        return {path.name for path in (self.root / repo).iterdir()}

    def __enter__(self) -> "FakeHub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    root: Path

    def log_message(self, *arguments: Any) -> None:
        """Nothing on the terminal."""

    def do_HEAD(self) -> None:
        self._send_file(body=False)

    def do_GET(self) -> None:
        if self.path.startswith("/api/"):
            self._answer({"id": "/".join(self.path.split("/")[3:5]), "sha": COMMIT, "siblings": []})
        else:
            self._send_file(body=True)

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.endswith("/repos/create"):
            self._answer({"url": f"{self._url()}/me/streets"})
        elif "/preupload/" in self.path:
            files = json.loads(content)["files"]
            told = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            self._answer({"files": told})
        elif "/commit/" in self.path:
            repo = self.root / "/".join(self.path.split("/")[3:5])
            repo.mkdir(parents=True, exist_ok=True)
            for line in content.splitlines():
                if (entry := json.loads(line))["key"] == "file":
                    (repo / entry["value"]["path"]).write_bytes(base64.b64decode(entry["value"]["content"]))
            self._answer({"commitUrl": f"{self._url()}/me/streets/commit/{COMMIT}", "commitOid": COMMIT})
        else:  # the card's header is sent to be looked at
            self._answer({"errors": [], "warnings": []})

    def _send_file(self, *, body: bool) -> None:
        user, name, _, _, *file = self.path.strip("/").split("/")
        path = self.root / user / name / "/".join(file)
        if not path.is_file():
            missing = "EntryNotFound" if path.parent.is_dir() else "RepoNotFound"
            self._answer({"error": "not found"}, status=404, headers={"X-Error-Code": missing})
            return
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        self._send(200, content, headers, body=body)

    def _answer(self, values: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(values).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if body and self.command != "HEAD":
            self.wfile.write(content)

    def _url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"
