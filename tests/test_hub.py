"""Pulling repositories, from a real HTTP server that answers as the hub does; and which names mean one."""

from __future__ import annotations

import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.file_download
import pytest
from hubserver import (  # noqa: F401 - fixtures
    BIG,
    COMMIT,
    FILES,
    LLAMA,
    ORG,
    WANTED,
    Handler,
    Hub,
    digest,
    empty_caches,
    endpoint,
    made_hasty,
    mull,
    pull,
    refused,
    served,
)
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from mull import hub
from mull.hub import repository
from mull.hub.repository import Repo, repo_of
from mull.types import UserError


def test_a_repository_is_what_a_model_needs_and_no_more(server: Hub):
    folder, said = pull(ORG)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: FILES[name] for name in WANTED}
    assert set(server.fetched()) == WANTED
    assert hub.resolve(ORG) == folder == hub.resolve(f"{ORG}@main")
    assert hub.resolve(f"{ORG}@{COMMIT}") == folder
    assert hub.resolve(f"{ORG}@other") is None
    assert hub.pulled() == {ORG: folder}
    listed = mull("pull")
    assert listed.stdout.splitlines()[1].split() == ["name", "path"], listed
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


def test_a_server_that_sends_more_than_it_announced_does_not_fill_the_disk(
    server: Hub, hasty: None, monkeypatch: pytest.MonkeyPatch
):
    """What is on the disk is looked at whenever there is more to write."""
    name = "model-00001-of-00002.safetensors"
    server.lies[name] = BIG * 8
    sizes: list[int] = []
    tell = repository._Within.tell
    monkeypatch.setattr(repository._Within, "tell", lambda file: sizes.append(tell(file)) or sizes[-1])
    assert refused(ORG) == f"{name} arrives with more than the 1,048,576 bytes that the hub announces; thrown away."
    assert 900_000 < max(sizes) <= len(BIG)
    assert [path.stat().st_size for path in (Repo(ORG, "main", "").folder / "blobs").glob("*.incomplete")] == [0]
    server.lies.clear()
    folder, _ = pull(ORG)
    assert (folder / name).read_bytes() == BIG


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


@pytest.mark.parametrize("address", ["nonsense", "ftp://127.0.0.1:9", "http://127.0.0.1:port", "https://"])
def test_an_endpoint_that_is_no_address(address: str, monkeypatch: pytest.MonkeyPatch):
    endpoint(monkeypatch, address)
    assert refused(ORG) == f"HF_ENDPOINT is {address!r}, which is no http:// or https:// address of a hub."


def test_a_misspelt_name_is_answered_with_the_nearest():
    assert refused("smolm2").endswith("behind it if wanted. Did you mean 'smollm2'?")


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


def test_nothing_of_the_hub_is_imported_before_it_is_needed():
    code = "import sys; from mull import hub; hub.resolve('smollm2'); print('huggingface_hub' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "False\n"
