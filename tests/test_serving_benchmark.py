"""benchmarks/serving.py at toy size: it asks, counts and compares right, and its sides do the same work."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from greedy import limit_to_speakable
from small import GQA, changed, chat, in_memory, model_of

from mull.export import export
from mull.model.weights import save_model

__all__ = ["in_memory"]
FOLDER = Path(__file__).parents[1] / "benchmarks"
TOY = changed(GQA, max_length=1280)


@pytest.fixture(autouse=True)
def _beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts import one another as they do when run."""
    monkeypatch.syspath_prepend(str(FOLDER))


def load(name: str) -> Any:
    """By its file: a helper of the tests is called serving, too."""
    known = f"benchmark_{name}" if name == "serving" else name
    if known not in sys.modules:
        spec = importlib.util.spec_from_file_location(known, FOLDER / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[known] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[known])
    return sys.modules[known]


def given(**more: Any) -> argparse.Namespace:
    return argparse.Namespace(**{"counts": [1, 4], "new": 8, "sharing": 5, "side": "mull"} | more)


def clocked(asked: list[tuple[int, int, int]], first: Callable[[Sequence[Any]], float], each: float) -> Any:
    """Speaks as fast as it is told to."""

    def speak(prompts: Sequence[Any], new: int) -> list[Any]:
        asked.append((len(prompts), len(prompts[0]), new))
        begun = first(prompts)
        return [load("speakers").Said(new, begun, begun + (new - 1) * each, 7) for _ in prompts]

    return speak


def test_decoding_is_the_speed_of_the_tokens_behind_the_first():
    serving = load("serving")
    asked: list[tuple[int, int, int]] = []
    asker = serving.Asker(clocked(asked, lambda prompts: sum(map(len, prompts)) / 1000, 0.25), 300)
    found = serving.decoding(asker, given())
    assert found["1"] == pytest.approx(4) and found["4"] == pytest.approx(16)
    assert found["prefill"] == pytest.approx(1000)
    assert found["4 whole"] == pytest.approx(4 * 8 / (4 * 0.032 + 7 * 0.25))
    assert asked.count((1, 512, 1)) == 5 and (4, 32, 8) in asked


def test_waiting_is_counted_to_the_first_token_with_and_without_what_is_known():
    serving = load("serving")
    known: set[tuple[int, ...]] = set()

    def first(prompts: Sequence[Any]) -> float:
        prefix = tuple(prompts[0][:1000])
        took = 0.1 if prefix in known else 1.0
        known.add(prefix)
        return took

    asker = serving.Asker(clocked([], first, 0.01), 300)
    found = serving.waiting(asker, given())
    assert (found["cold"], found["warm"]) == (1.0, 0.1)
    assert found["cold last"] == pytest.approx(1.01)
    assert set(serving.waiting(asker, given(side=serving.ALONE))) == {"cold", "cold last"}


def test_no_prompt_comes_twice_and_all_sides_get_the_same():
    serving = load("serving")
    one, two = (serving.Asker(lambda prompts, new: [], 300) for _ in range(2))
    prompts = [tuple(prompt) for _ in range(50) for prompt in one.prompts(3, 32)]
    assert len(set(prompts)) == 150
    assert prompts == [tuple(prompt) for _ in range(50) for prompt in two.prompts(3, 32)]


def test_an_answer_that_ends_early_is_no_measure():
    serving = load("serving")
    asker = serving.Asker(lambda prompts, new: [load("speakers").Said(new - 1, 0.1, 0.2)], 300)
    with pytest.raises(AssertionError):
        asker.seconds(1, 32, 8)


def test_other_work_is_noticed():
    same_work = load("serving").same_work
    same_work("transformers", [1] * 99 + [2], [1] * 100)  # a near tie
    same_work("mull http", [None] * 3, [1, 2])
    same_work("llama.cpp", [1, 2, 3, 4, 9], [1, 2, 3, 8, 8])
    for name, tokens in (("transformers", [1] * 9 + [2]), ("llama.cpp", [1, 2, 2, 2])):
        with pytest.raises(SystemExit, match=f"{name} does other work than mull"):
            same_work(name, tokens, [1] * len(tokens))


def test_the_fastest_setting_of_each_peer_is_found_by_trying():
    serving = load("serving")
    speeds = {"llama.cpp": (3, 9), "llama.cpp unified": (4, 4), "vllm eager": (1, 1)}
    tried: list[str] = []

    def measured(names: Sequence[str], rounds: int) -> dict[str, list[Any]]:
        tried.extend(names)
        return {name: [{"figures": dict(zip(("1", "16"), speeds[name], strict=True))}] for name in names}

    assert serving.fastest(measured, serving.PARTS["decode"], list(speeds)) == ["llama.cpp", "vllm eager"]
    assert tried == ["llama.cpp", "llama.cpp unified"]
    assert serving.fastest(measured, serving.PARTS["prefix"], list(speeds))[0] == "llama.cpp unified"  # seconds


def test_every_side_that_is_named_can_speak():
    serving = load("serving")
    for part in serving.PARTS.values():
        assert {*part.ours, *part.theirs} <= set(load("speakers").SPEAKERS)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("toy")
    save_model(folder / "toy", limit_to_speakable(model_of(TOY)), chat())
    export(str(folder / "toy"), "hf", folder / "hf", "f32")
    export(str(folder / "toy"), "gguf", folder / "gguf", "f32")
    return folder


def said(toy: Path, name: str, prompts: Sequence[Sequence[int]], new: int) -> list[Any]:
    speakers = load("speakers")
    gguf = next((toy / "gguf").glob("*.gguf"))
    with ExitStack() as leave:
        speak = speakers.SPEAKERS[name](speakers.Place(toy / "hf", gguf, 4, 640, 1, leave))
        return speak(prompts, new)


@pytest.mark.parametrize(
    "name",
    [
        "mull exact",
        "llama.cpp",
        pytest.param("transformers sdpa", marks=pytest.mark.slow),
        pytest.param("transformers eager", marks=pytest.mark.slow),
    ],
)
def test_sides_say_the_same(toy: Path, name: str):
    if name.startswith("transformers"):
        pytest.importorskip("transformers", reason="transformers is not installed: pip install 'mull[bench]'")
    prompts = load("serving").Asker(None, TOY.vocab).prompts(3, 16)
    ours, found = (said(toy, side, prompts, 5) for side in ("mull", name))
    assert [one.count for one in ours] == [one.count for one in found] == [5] * 3
    assert [one.token for one in ours] == [one.token for one in found]
    assert all(0 < one.first < one.last for one in ours)


@pytest.mark.parametrize("name", ["mull http", "mull http, nothing shared"])
def test_the_servers_clients_count_what_it_says(toy: Path, name: str):
    prompts = load("serving").Asker(None, TOY.vocab).prompts(3, 16)
    found = said(toy, name, prompts, 5)
    assert [one.count for one in found] == [5] * 3 and all(0 < one.first <= one.last for one in found)


@pytest.mark.slow
def test_the_whole_comparison_at_toy_size(toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    told = ["--model", str(toy / "toy"), "--rounds", "1", "--threads", "1", "--new", "4", "--counts", "1", "2"]
    told += ["--sharing", "2", "--settings", "transformers sdpa", "llama.cpp 4 slots", "--json", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["serving.py", *told])
    load("serving").main()
    parts = json.loads((tmp_path / "out").read_text())["parts"]
    assert set(parts) == {"decode", "prefix", "http", "moe"}
    assert set(parts["prefix"]) == {"mull http", "mull http, nothing shared", "llama.cpp 4 slots"}
    for sides in parts.values():
        for side in sides.values():
            assert all(figure > 0 for run in side["runs"] for figure in run.values())
    assert "vllm is left out" not in capsys.readouterr().out  # it was not among the settings
