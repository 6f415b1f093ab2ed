"""A recipe so small that all of it runs in seconds, one finished run of it, and the command line in this process."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from small import MOE, chat, model_of
from typer.testing import CliRunner

from mull.cli import app
from mull.model.weights import save_model

# Property tests draw the same examples at each run, so that none fails over what has nothing to do with a change.
# HYPOTHESIS_PROFILE=explore draws others. Loaded here, before the modules whose @settings go back to it.
settings.register_profile("repeat", derandomize=True, deadline=None)
settings.register_profile("explore", derandomize=False, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

TASK = '{ task = "gcd", size = { values = [1, 3] } }'  # few enough to be learnt in a hundred steps
TRAIN = "train = { checkpoint_every = 20, optim = { lr = 1e-2 } }"
TINY = f"""
name = "tiny"
about = "a few steps of everything"

[model]
vocab = 300
width = 32
layers = 2
heads = 2
q_rank = 16
kv_rank = 16
nope_dim = 8
rope_dim = 8
v_dim = 16
ffn = 64
dense_layers = 1
experts = 4
active_experts = 2
shared_experts = 1
expert_ffn = 32
mtp_layers = 1
max_length = 128

[[stage]]
kind = "pretrain"
name = "base"
steps = 60
batch_tokens = 512
tokenizer_sample = 50
tasks = [{TASK}]
{TRAIN}

[[stage]]
kind = "sft"
name = "taught"
init = "base"
steps = 60
batch_tokens = 512
tasks = [{TASK}]
{TRAIN}

[[stage]]
kind = "rl"
name = "practised"
init = "taught"
steps = 2
problems = 4
samples = 4
refills = 8
max_tokens = 48
tasks = [{TASK}]

[[stage]]
kind = "distill"
name = "student"
teacher = "practised"
reuse = ["practised"]
steps = 4
batch_tokens = 256
fresh = 16
max_tokens = 48
on_policy_steps = 1
on_policy_answers = 4
tasks = [{TASK}]
[stage.model]
width = 32
layers = 1
heads = 2
kv_heads = 2
head_dim = 16
ffn = 64
max_length = 128

[[stage]]
kind = "evaluate"
name = "exam"
models = ["taught", "student"]
n = 4
max_tokens = 32
exams = [{TASK}]
"""


@dataclass(frozen=True)
class Said:
    """What a command came to."""

    code: int
    out: str
    err: str


Mull = Callable[..., Said]


def invoke(*words: object, given: str = "") -> Said:
    """`mull words...` in this process; a bug raises here."""
    result = CliRunner().invoke(app, [str(word) for word in words], input=given, catch_exceptions=False)
    return Said(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="session")
def mull() -> Mull:
    return invoke


@pytest.fixture(scope="session")
def refused() -> Callable[..., str]:
    """The one line that a mistake is answered with: exit code 2, nothing on stdout."""

    def line(*words: object, given: str = "") -> str:
        said = invoke(*words, given=given)
        assert said.code == 2, said
        assert said.out == ""
        assert said.err.endswith("\n")
        assert said.err.count("\n") == 1, said.err
        assert "Traceback" not in said.err
        return said.err.strip()

    return line


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipe's file."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.toml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def brief(tiny: Path) -> Path:
    """Its first two stages, two steps each."""
    path = tiny.with_name("brief.toml")
    path.write_text(TINY.partition('[[stage]]\nkind = "rl"')[0].replace("steps = 60", "steps = 2"), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def done(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of it. Read only: copy what a test changes."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    said = invoke("run", tiny, "--out", folder)
    assert said.code == 0, said
    return folder


@pytest.fixture(scope="module")
def transformers():
    """The library, offline and without its progress bars."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TRANSFORMERS_VERBOSITY", "warning")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the import itself
            import transformers as library
        library.utils.logging.disable_progress_bar()
        yield library


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A model directory that a test may break."""
    save_model(tmp_path / "m", model_of(MOE), chat())
    return tmp_path / "m"


def content(folder: Path) -> dict[str, str]:
    """Every file and a digest of it: equal before and after means untouched."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
