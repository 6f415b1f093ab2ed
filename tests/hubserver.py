"""A real HTTP server that answers as the hub does, empty caches, and what tests of fetching ask with."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub.file_download
import pytest
from huggingface_hub import constants

from mull import hub
from mull.types import UserError

ORG = "org/model"
COMMIT = "c" * 40
BIG = os.urandom(1 << 20)
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "tokenizer_config.json": b"[]",
    "chat_template.jinja": b"{{ messages }}",
    "README.md": b"---\nlicense: mit\n---\n",
    "LICENSE": b"MIT",
    "model-00001-of-00002.safetensors": BIG,
    "model-00002-of-00002.safetensors": BIG[::-1],
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
    # what nobody wants
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": BIG,
    "original/model.safetensors": BIG,
    "onnx/config.json": b"{}",
    "script.py": b"import os",
}
WANTED = set(list(FILES)[:9])


@dataclass
class Hub:
    """What the server holds, what goes wrong, and what it was asked."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    commit: str = COMMIT
    drop: dict[str, int] = field(default_factory=dict)  # file -> break the connection once after so many bytes
    stall: dict[str, int] = field(default_factory=dict)  # file -> send nothing more after so many
    lies: dict[str, bytes] = field(default_factory=dict)  # file -> what is sent instead
    refuse: tuple[int, str] | None = None  # status and X-Error-Code for files
    asked: list[tuple[str, str, str]] = field(default_factory=list)  # method, path, Range
    agents: set[str] = field(default_factory=set)
    url: str = ""

    def fetched(self) -> list[str]:
        return [path.split(f"/resolve/{self.commit}/")[1] for method, path, _ in self.asked
                if method == "GET" and "/resolve/" in path]  # fmt: skip


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".gguf", ".bin"))


def digest(content: bytes, sha256: bool) -> str:
    return (hashlib.sha256(content) if sha256 else hashlib.sha1(b"blob %d\0" % len(content) + content)).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *given: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        hub.agents.add(self.headers.get("User-Agent", ""))
        if found := re.fullmatch(rf"/api/models/{ORG}/revision/(.+)", path):
            return self.model(found[1])
        if re.fullmatch(rf"/api/models/{ORG}/tree/{hub.commit}", path):
            return self.json([
                {"type": "file", "path": name, "oid": digest(content, False), **self.sizes(content)}
                | ({"lfs": {"oid": digest(content, True), **self.sizes(content)}} if large(name) else {})
                for name, content in hub.files.items()
            ])  # fmt: skip
        if (found := re.fullmatch(rf"/{ORG}/resolve/{hub.commit}/(.+)", path)) and found[1] in hub.files:
            return self.file(found[1])
        return self.json({"error": "?"}, 404, "EntryNotFound" if "/resolve/" in path else "RepoNotFound")

    def model(self, revision: str) -> None:
        if revision not in ("main", self.hub.commit):
            return self.json({"error": "?"}, 404, "RevisionNotFound")
        siblings = [
            {"rfilename": name, "blobId": digest(content, False), **self.sizes(content)}
            | ({"lfs": {"sha256": digest(content, True), **self.sizes(content)}} if large(name) else {})
            for name, content in self.hub.files.items()
        ]
        return self.json({"id": ORG, "sha": self.hub.commit, "siblings": siblings})

    def sizes(self, content: bytes) -> dict[str, int]:
        return {"size": len(content), "pointerSize": 1}

    def file(self, name: str) -> None:
        hub, true = self.hub, self.hub.files[name]
        if hub.refuse and self.command == "GET":
            self.json({"error": "?"}, *hub.refuse)
            return
        content = hub.lies.get(name, true) if self.command == "GET" else true
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").rstrip("-"))
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", hub.commit)
        self.send_header("ETag", f'"{digest(true, large(name))}"')
        if large(name):
            self.send_header("X-Linked-Etag", f'"{digest(true, True)}"')
            self.send_header("X-Linked-Size", str(len(true)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if (most := hub.drop.pop(name, None)) is not None:
            self.wfile.write(content[start : start + most])
            self.close_connection = True
        elif (most := hub.stall.get(name)) is not None:
            self.wfile.write(content[start : start + most])
            self.wfile.flush()
            time.sleep(30)
        else:
            self.wfile.write(content[start:])

    def json(self, value: Any, status: int = 200, code: str = "") -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture(name="caches", autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty ones, and no network but this machine's own."""
    monkeypatch.setenv("MULL_CACHE", str(tmp_path / "mull"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for name in ("HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint(monkeypatch, "http://127.0.0.1:9")
    return tmp_path


def endpoint(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """huggingface_hub reads the environment once, when it is imported."""
    monkeypatch.setenv("HF_ENDPOINT", url)
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.fixture(name="server")
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    held = Hub()
    http = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": held}))
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    held.url = f"http://127.0.0.1:{http.server_port}"
    endpoint(monkeypatch, held.url)
    yield held
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture(name="hasty")
def made_hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits a second before it tries again, and writes ten megabytes at once."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(huggingface_hub.file_download.time, "sleep", lambda seconds: None)


def pull(name: str, **more: Any) -> tuple[Path, list[str]]:
    said: list[str] = []
    return hub.pull(name, said.append, **more), said


def refused(name: str, **more: Any) -> str:
    with pytest.raises(UserError) as caught:
        pull(name, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def mull(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mull.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=os.environ | env, check=False)


LLAMA = json.dumps({
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}).encode()  # fmt: skip
