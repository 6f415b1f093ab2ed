"""Runs killed with SIGKILL end in the bits of runs left alone. benchmarks/kills.py does it; here it does a little."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from conftest import content
from test_checkpoint import filling, in_memory  # noqa: F401 - fixtures

SCRIPT = Path(__file__).parents[1] / "benchmarks" / "kills.py"


def killed(*words: object) -> tuple[int, int, str]:
    """(kills, differing bits, everything that was printed) of one call of the script."""
    said = subprocess.run([sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True)
    last = re.fullmatch(r"(\d+) kills, (\d+) differing bits", said.stdout.splitlines()[-1] if said.stdout else "")
    assert last is not None, said.stdout + said.stderr
    assert said.returncode == (last[2] != "0")
    return int(last[1]), int(last[2]), said.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_killed_run_ends_in_the_same_bits(done: Path) -> None:
    skilled = done / "models" / "taught"
    kills, wrong, said = killed("--kills", 2, "--only", "mixture, latent, exact", "--skilled", skilled, "--seed", 3)
    assert kills >= 2
    assert wrong == 0, said


@pytest.mark.slow
def test_fifty_kills_in_all_stages_and_modes() -> None:
    kills, wrong, said = killed("--kills", 50)
    assert kills >= 50
    assert wrong == 0, said
    assert all(re.search(rf"^{name}, {mode} ", said, re.M) for name in ("mixture, latent", "dense, grouped")
               for mode in ("fast", "exact"))  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("kills", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["kills"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_one_bit_is_seen_wherever_it_is(script, done: Path, tmp_path: Path) -> None:
    peace = script.still(done, tmp_path / "a", done)
    assert script.differing(peace, script.still(done, tmp_path / "b", done)) == {}
    assert not any("tensorboard" in name or "lock" in name for name in peace)
    for name in ("models/student/model.safetensors", "models/base/config.json", "metrics.jsonl", "report.html"):
        changed = peace | {name: bytes([peace[name][0] ^ 4]) + peace[name][1:]}
        assert script.differing(peace, changed) == {name: 1}
    less = {name: raw for name, raw in peace.items() if name != "state.json"}
    assert script.differing(peace, less)["state.json"] > 8 * len(peace["state.json"])


def test_clocks_are_set_alike_and_nothing_else_is(script, done: Path, tmp_path: Path) -> None:
    line = (done / "metrics.jsonl").read_text().splitlines()[0]
    at_rest = json.loads(script.still(done, tmp_path / "a", done)["metrics.jsonl"].splitlines()[0])
    moving = json.loads(line)
    assert {key for key in moving if at_rest[key] != moving[key]} == {"time", "seconds", "tokens_per_s"}


def test_a_clock_set_back_changes_no_bit(
    script, brief: Path, mull: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A minute back with every look at it, from the first step to the report."""
    assert mull("run", brief, "--out", tmp_path / "peace").code == 0
    now = count(2e9, -60)
    monkeypatch.setattr(time, "time", lambda: next(now))
    said = mull("run", brief, "--out", tmp_path / "back")
    assert said.code == 0, said
    assert "2/2 taught       step 2/2" in said.err
    monkeypatch.undo()
    stamps = [json.loads(line)["time"] for line in (tmp_path / "back" / "metrics.jsonl").read_text().splitlines()]
    assert stamps == sorted(stamps, reverse=True)
    total = json.loads((tmp_path / "back" / "report.json").read_text())["total"]
    assert 0 < total["seconds"] < 3600
    assert 0 < total["usd"] < 1
    peace, back = (script.still(tmp_path / name, tmp_path / "still", tmp_path / "peace") for name in ("peace", "back"))
    assert script.differing(peace, back) == {}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs")
def test_a_disk_that_fills_again_and_again_costs_nothing(
    script, disk: Callable[[int], Path], tiny: Path, mull: Callable[..., Any], tmp_path: Path
) -> None:
    """All stages, in exact mode. Each session is stopped by a full file system and finds a little more room."""
    words = ["run", tiny, "exactness=exact", "--quiet", "--out"]
    assert mull(*words, tmp_path / "peace").code == 0
    size, stopped = 200_000, 0
    while True:
        folder = disk(size) / "run"
        said = mull(*words, folder)
        if said.code == 0:
            break
        assert said.code == 2, said
        assert re.fullmatch(r"No space left on device: .* continue with: .*\n", said.err), said
        stopped += 1
        size = size * 8 // 7
    assert stopped > 10
    peace = script.still(tmp_path / "peace", tmp_path / "a", tmp_path / "peace")
    assert script.differing(peace, script.still(folder, tmp_path / "b", tmp_path / "peace")) == {}


@pytest.mark.slow
def test_of_two_runs_started_at_once_one_is_refused(brief: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mull.cli", "run", str(brief), "--out", str(tmp_path / "run"), "--quiet"]
    both = [subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ends = [(*one.communicate(timeout=240), one.returncode) for one in both]
    (_, said, code), (_, nothing, fine) = sorted(ends, key=lambda end: -end[2])
    assert (code, fine, nothing) == (2, 0, "")
    assert re.fullmatch(rf"{tmp_path / 'run'} is in use by process \d+; wait for it or give another --out\.\n", said)
    assert sorted(p.name for p in (tmp_path / "run" / "models").iterdir()) == ["base", "result.json", "taught"]
    before = content(tmp_path / "run" / "models")
    assert subprocess.run(words, capture_output=True).returncode == 0
    assert content(tmp_path / "run" / "models") == before
