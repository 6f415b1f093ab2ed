"""The benchmarks at toy size: they run, do the work they say, and count right. No speed is judged here."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from mull.model.config import PRESETS, ModelConfig
from mull.model.transformer import Transformer
from mull.model.weights import save_model
from mull.tasks import TASKS
from mull.text.chat import Chat
from mull.text.tokenizer import SMALLEST, Tokenizer

FOLDER = Path(__file__).parents[1] / "benchmarks"
SMALL = PRESETS["tiny-moe"].model_copy(update={"layers": 2, "width": 32, "mtp_layers": 0, "init_std": 0.2})


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import one another as they do when run."""
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> Any:
    return importlib.import_module(name)


def run(script: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, str(FOLDER / script), *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_sides_take_turns_in_fresh_processes(tmp_path: Path):
    sides = load("sides")
    log = tmp_path / "log"
    script = tmp_path / "side.py"
    script.write_text(
        "import json, os, sys\n"
        f"open({str(log)!r}, 'a').write(sys.argv[1])\n"
        "print('progress'); print(json.dumps({'pid': os.getpid(), 'mood': os.environ.get('MOOD')}))\n"
    )
    found = sides.alternate(str(script), {"a": sides.Side(["a"], {"MOOD": "fine"}), "b": sides.Side(["b"])}, rounds=3)
    assert log.read_text() == "ababab"
    assert [one["mood"] for one in found["a"]] == ["fine"] * 3
    assert len({one["pid"] for each in found.values() for one in each}) == 6


def test_a_side_that_fails_says_why(tmp_path: Path):
    sides = load("sides")
    script = tmp_path / "side.py"
    script.write_text("raise RuntimeError('no such setting')")
    with pytest.raises(SystemExit, match="no such setting"):
        sides.measure(str(script), sides.Side([]))


def test_a_missing_peer_is_one_sentence():
    with pytest.raises(SystemExit, match=r"needs no_such_peer; install them with pip install 'mull\[bench\]'"):
        load("sides").need("json", "no_such_peer")


def test_ratios_are_taken_round_by_round():
    sides = load("sides")
    assert sides.ratios([2.0, 40.0, 3.0], [1.0, 20.0, 1.0]) == (2.0, 2.0, 2.5)
    assert sides.quartiles([7.0]) == (7.0, 7.0, 7.0)
    assert sides.spread((0.954, 1.5, 2.0), 2) == "1.50 (0.95 - 2.00)"


@pytest.fixture(scope="module")
def trl_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The start that against_trl.py makes, its model smaller."""
    sys.path.insert(0, str(FOLDER))
    try:
        against = load("against_trl")
    finally:
        sys.path.remove(str(FOLDER))
    folder = tmp_path_factory.mktemp("trl") / "start"
    small = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "head_dim": 16, "ffn": 32}
    cfg = against.MODEL.model_copy(update=small)
    save_model(folder, Transformer(cfg).initialise(0), Chat(against.characters()))
    return folder


def trl_try(folder: Path, lengths: str) -> argparse.Namespace:
    return argparse.Namespace(folder=folder, lengths=lengths, scale=8, warm=1, steps=2)


def test_the_long_tail_has_its_mean_and_its_longest():
    lengths = load("against_trl").long_tail(64, 64, 512)
    assert (len(lengths), statistics.mean(lengths), max(lengths)) == (64, 64, 512)
    assert sorted(lengths) == lengths
    assert statistics.median(lengths) < 40


def test_both_sides_of_trl_are_asked_for_the_same(trl_start: Path):
    against = load("against_trl")
    given = trl_try(trl_start, "tail")
    assert against.lengths_of(1, given) == against.lengths_of(1, given) != against.lengths_of(2, given)
    assert sorted(against.lengths_of(1, given)) == sorted(against.lengths_of(2, given))


def test_the_characters_come_back_as_they_were():
    against = load("against_trl")
    tokenizer = against.characters()
    text = against.CHARACTERS
    assert tokenizer.vocab_size == against.MODEL.vocab == 99
    assert len(tokenizer.encode(text)) == len(text) and tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("exact", [False, True])
def test_our_rl_step_draws_the_prescribed_lengths(trl_start: Path, exact: bool, monkeypatch: pytest.MonkeyPatch):
    """Which `Prescribed` asserts of every answer."""
    against = load("against_trl")
    monkeypatch.setitem(TASKS, against.Digits.name, against.Digits())
    found = against.ours(trl_try(trl_start, "tail"), exact)
    assert len(found["seconds"]) == len(found["generating"]) == 2
    assert all(0 < generating < whole for generating, whole in zip(found["generating"], found["seconds"], strict=True))


@pytest.mark.slow
@pytest.mark.skipif(find_spec("trl") is None, reason="TRL is not installed: pip install 'mull[bench]'")
@pytest.mark.parametrize("lengths", ["equal", "tail"])
@pytest.mark.parametrize("side", ["trl", "trl continuous 8 parts"])
def test_trl_draws_the_prescribed_lengths(trl_start: Path, lengths: str, side: str):
    sizes = ["--lengths", lengths, "--scale", "8", "--steps", "2"]
    said = run("against_trl.py", "--side", side, "--folder", str(trl_start), *sizes)
    assert len(json.loads(said.splitlines()[-1])["seconds"]) == 2


def transformers_try(folder: Path, cfg: ModelConfig) -> argparse.Namespace:
    save_model(folder, Transformer(cfg).initialise(0), Chat(Tokenizer.train([], SMALLEST)))
    return argparse.Namespace(folder=folder, batch=2, length=24, steps=5, warm=1)


@pytest.mark.parametrize(("attention", "experts"), [("sdpa", "grouped_mm"), ("eager", "eager")])
def test_mull_and_transformers_do_the_same_work(
    tmp_path: Path, attention: str, experts: str, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'mull[bench]'")
    against = load("against_transformers")
    monkeypatch.setattr(against, "gemm_peak", lambda device: 1e9)
    given = transformers_try(tmp_path / "model", SMALL)
    mine = against.ours(given, exact=False)
    peers = against.theirs(given, attention, experts)
    against.same_work("transformers", peers, mine)
    assert len(peers["seconds"]) == len(mine["seconds"]) == 5
    assert mine["last_loss"] < mine["first_loss"] - 0.01


def test_other_work_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("transformers", reason="transformers is not installed: pip install 'mull[bench]'")
    against = load("against_transformers")
    monkeypatch.setattr(against, "gemm_peak", lambda device: 1e9)
    given = transformers_try(tmp_path / "model", SMALL)
    mine = against.ours(given, exact=False)
    transformers_try(tmp_path / "model", SMALL.model_copy(update={"rope_theta": 5.0}))
    peers = against.theirs(given, "sdpa", "eager")
    with pytest.raises(SystemExit, match="other work"):
        against.same_work("transformers", peers, mine)


def test_activations_are_counted_once_and_without_parameters():
    scaling = load("scaling")
    trainer = scaling.Trainer(Transformer(SMALL).initialise(0), scaling.TrainConfig(), steps=10)

    def kept(batch: int) -> int:
        return scaling.kept_bytes(trainer, scaling.batch_of(scaling.Point(SMALL, 16, batch), torch.device("cpu")))

    assert kept(2) > 2 * 16 * SMALL.layers * SMALL.width * 4  # what enters each layer, at least
    assert kept(4) < 2 * kept(2)  # what does not grow with the tokens is small
    assert 1.9 * kept(8) < kept(16) < 2.0 * kept(8)


@pytest.mark.slow
def test_scaling_writes_its_table_and_its_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    scaling = load("scaling")
    points = {8: scaling.Point(SMALL, 8, 4), 32: scaling.Point(SMALL, 32, 1)}
    monkeypatch.setattr(scaling, "axes", lambda cfg, divide: {"sequence length": points})
    plot, figures = tmp_path / "scaling.svg", tmp_path / "scaling.json"
    given = ["--preset", "tiny-moe", "--divide", "32", "--device", "cpu", "--svg", str(plot), "--json", str(figures)]
    monkeypatch.setattr("sys.argv", ["scaling.py", *given])
    scaling.main()
    said = capsys.readouterr().out
    assert said.count("| sequence length |") == 2
    found = json.loads(figures.read_text())
    short, long = found["points"]["sequence length"].values()
    assert short["kept_per_token"] < long["kept_per_token"]
    for shares in found["where"].values():
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["matrix products"] > 0.02
    assert plot.read_text().startswith("<svg")
    assert "tokens/s against sequence length" in plot.read_text()


@pytest.mark.slow
def test_muon_and_adamw_learn_the_same_mixture(monkeypatch: pytest.MonkeyPatch):
    study = load("muon_adamw")
    monkeypatch.setattr(study, "HELD_OUT", 1)
    given = argparse.Namespace(tokens=128, steps=40, seed=1)
    curves = {}
    for given.optimiser, given.rate in (("adamw", 4e-3), ("muon", 3e-3)):
        curves[given.optimiser] = study.curve(given)["points"]
    for points in curves.values():
        assert [step for step, _ in points] == [20, 40]
        assert points[1][1] < 4  # of 5.95, the logarithm of the vocabulary
    assert curves["adamw"] != curves["muon"]


def test_equal_loss_is_read_from_means_of_records():
    study = load("muon_adamw")
    points = [(20, 5.0), (40, 1.0), (60, 3.0), (80, 2.0), (100, 1.0), (120, 0.6)]
    assert study.smoothed(points) == [(60, 3.0), (80, 2.0), (100, 2.0), (120, pytest.approx(1.2))]
    assert study.reached(points, 2.0) == 80  # not 40, a single low record
    assert study.reached(points, 1.0) is None


@pytest.mark.parametrize("peer", [pytest.param("transformers", marks=pytest.mark.slow), "llama.cpp"])
def test_loading_from_a_file_to_the_first_token(peer: str, tmp_path: Path):
    for package in load("loading").PACKAGES[peer]:
        pytest.importorskip(package)
    from gguf_files import LLAMA, written
    from greedy import limit_to_speakable
    from small import model_of

    path = written(tmp_path, limit_to_speakable(model_of(LLAMA)))
    table = run(
        "loading.py", "--model", str(path), "--settings", peer, "--rounds", "1", "--json", str(tmp_path / "out")
    )
    assert [line.split()[0] for line in table.splitlines()[1:]] == ["mull", peer]
    sides = json.loads((tmp_path / "out").read_text())["sides"]
    assert sides["mull"]["runs"][0]["token"] == sides[peer]["runs"][0]["token"]
    assert all(one["runs"][0][key] > 0 for one in sides.values() for key in ("load", "first", "import"))


def test_loading_stops_at_other_tokens():
    figures = {"prompt": [1, 2], "token": 3}
    loading = load("loading")
    loading.same_work("transformers", dict(figures), figures)
    for other in ({"prompt": [1, 2], "token": 4}, {"prompt": [1, 3], "token": 3}, {"prompt": [1], "token": 3}):
        with pytest.raises(SystemExit, match="does other work"):
            loading.same_work("transformers", other, figures)
    loading.same_work("llama.cpp", {"prompt": [-1, -1], "token": 4}, figures)
