"""The Hugging Face Hub's HTTP on loopback: repositories in memory, tokens that are right, and what was asked of it."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from facemetric.model.weights import hub as hub_module

TOKEN = "hf_right"


@dataclass
class Repo:
    """A repository: its files at each commit, the newest last."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    def commit(self, files: dict[str, bytes]) -> str:
        """Add files; returns the commit."""
        content = (dict(self.commits[self.head]) if self.commits else {}) | files
        mark = hashlib.sha1(repr((len(self.commits), sorted(content.items()))).encode()).hexdigest()
        self.commits[mark] = content
        return mark

    def at(self, revision: str) -> str | None:
        """The commit of a revision."""
        return self.head if revision == "main" else next((c for c in self.commits if c == revision), None)


@dataclass
class FakeHub:
    """What the server knows. `asked`: (method, path) of every request."""

    address: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    before_commit: Any = None  # called as a commit comes in: somebody else is quicker

    def add(self, name: str, files: dict[str, bytes], **options: bool) -> Repo:
        """A repository with one commit."""
        self.repos[name] = Repo(**options)
        self.repos[name].commit(files)
        return self.repos[name]


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_lfs(path: str) -> bool:
    return not path.endswith((".json", ".md", ".txt"))


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: FakeHub

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self) -> None:
        """Read the body, find who answers."""
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        self.hub.asked.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        self.owner = token == TOKEN
        if token not in ("", TOKEN):
            return self.fail(401, message="Invalid credentials in Authorization header")
        parts = path.strip("/").split("/")
        if path == "/api/repos/create":
            return self.create()
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if parts[:1] == ["blob"]:
            self.hub.blobs[parts[1]] = self.body
            return self.reply({})
        name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2]).removesuffix(".git")
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and not self.owner):
            return self.fail(404 if self.owner else 401, "RepoNotFound")
        if repo.gated and not self.owner:
            return self.fail(403, "GatedRepo")
        rest = parts[4:] if parts[0] == "api" else parts[2:]
        if parts[0] != "api":
            return self.batch() if rest[:2] == ["info", "lfs"] else self.resolve(repo, rest)
        if rest[:1] == ["preupload"]:
            files = json.loads(self.body)["files"]
            mode = {True: "lfs", False: "regular"}
            return self.reply(
                {
                    "files": [
                        {"path": f["path"], "uploadMode": mode[is_lfs(f["path"])], "shouldIgnore": False}
                        for f in files
                    ]
                }
            )
        if rest[:1] == ["commit"]:
            return self.commit(name, repo)
        revision = rest[1] if rest[:1] == ["revision"] else "main"
        return self.info(name, repo, revision)

    def info(self, name: str, repo: Repo, revision: str) -> None:
        commit = repo.at(revision)
        if commit is None:
            return self.fail(404, "RevisionNotFound")
        siblings = []
        for path, content in repo.commits[commit].items():
            entry: dict[str, Any] = {"rfilename": path, "size": len(content)}
            entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            if is_lfs(path):
                entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 134}
            siblings.append(entry)
        self.reply(
            {
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repo.private,
                "siblings": siblings,
                "tags": [],
            }
        )
        return None

    def resolve(self, repo: Repo, rest: list[str]) -> None:
        commit, path = repo.at(rest[1]), "/".join(rest[2:])
        if commit is None:
            return self.fail(404, "RevisionNotFound")
        if path not in repo.commits[commit]:
            return self.fail(404, "EntryNotFound")
        content = repo.commits[commit][path]
        self.reply(content, {"X-Repo-Commit": commit, "ETag": f'"{sha256(content)}"'})
        return None

    def create(self) -> None:
        asked = json.loads(self.body)
        name = (
            f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
        )
        if not self.owner:
            return self.fail(401, message="Invalid username or password.")
        if not name.startswith("me/"):
            return self.fail(403, message="You don't have the rights to create a model under this namespace")
        if name in self.hub.repos:
            return self.fail(409, message="You already created this model repo")
        private = asked.get("private") or asked.get("visibility") == "private"
        self.hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
        self.reply({"url": f"{self.hub.address}/{name}", "name": name, "id": name})
        return None

    def batch(self) -> None:
        objects = []
        for each in json.loads(self.body)["objects"]:
            href = f"{self.hub.address}/blob/{each['oid']}"
            objects.append(each | {"actions": {"upload": {"href": href, "header": {}}}})
        self.reply({"transfer": "basic", "objects": objects})

    def commit(self, name: str, repo: Repo) -> None:
        if not (self.owner and name.startswith("me/")):
            return self.fail(
                403, message="Forbidden: you must use a write token to write to this repository."
            )
        if self.hub.before_commit is not None:
            self.hub.before_commit()
        files: dict[str, bytes] = {}
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit", repo.head) != repo.head:
                return self.fail(412, message="A commit has happened since. Please refresh and try again.")
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                files[value["path"]] = self.hub.blobs[value["oid"]]
        mark = repo.commit(files)
        # At the address of the real hub: older huggingface_hub parses no other.
        url = f"https://huggingface.co/{name}/commit/{mark}"
        self.reply({"success": True, "commitOid": mark, "commitUrl": url})
        return None

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        headers = ({"X-Error-Code": code} if code else {}) | ({"X-Error-Message": message} if message else {})
        self.reply({"error": message or code}, headers, status)

    def reply(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
        for key, value in {"Content-Type": kind, "Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


@contextmanager
def serve_hub() -> Iterator[FakeHub]:
    """A hub that lives as long as the block."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub, an empty cache, no token, and a process that has asked for nothing yet."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)
    monkeypatch.setattr(hub_module, "FOUND", {})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve_hub() as server:
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        yield server


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
