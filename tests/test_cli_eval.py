"""mull eval, compare, models and tasks check as they are typed: own files, endpoints, prices, interruptions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Mull
from endpoint import Vendor, serving

from mull.types import read_rollouts


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    path = tmp_path / "sums.jsonl"
    lines = [{"question": f"What is {a} + {a + 1}?", "answer": 2 * a + 1, "id": f"s{a}"} for a in range(12)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Vendor]:
    with serving(Vendor("vllm")) as vendor:
        models = tmp_path / "mine.toml"
        models.write_text(
            f'[adder]\nurl = "{vendor.url}"\nmodel = "thinker"\ndialect = "vllm"\nconcurrency = 2\nretries = 1\n'
            "usd_per_million = { input = 1000, output = 1000 }\npriced = 2026-11-01\n"
        )
        monkeypatch.setenv("MULL_MODELS", str(models))
        yield vendor


def answers(folder: Path) -> list:
    return [r for path in sorted((folder / "rollouts").glob("*.jsonl")) for r in read_rollouts(path)]


def test_a_file_of_ones_own_before_an_endpoint(mull: Mull, vendor: Vendor, sums: Path, tmp_path: Path) -> None:
    said = mull("eval", "adder", "--task", sums, "--out", tmp_path / "e", "--json", "-q")
    assert said.code == 0, said.err
    (row,) = json.loads(said.out)["evals"]
    assert (row["n"], row["accuracy"], row["outcomes"]) == (12, 1.0, {"solved": 12})
    per_answer = row["usd"] / 12
    found = answers(tmp_path / "e")
    assert all(abs(r.completion.usd - per_answer) < 1e-12 for r in found)
    assert [r.completion.thinking_tokens > 0 for r in found] == [True] * 12
    assert found[0].completion.reasoning
    assert not (tmp_path / "e" / "tokens").exists()
    text = (tmp_path / "e" / "report.html").read_text()
    assert "adder" in text
    said = mull("info", tmp_path / "e")
    assert said.code == 0
    assert vendor.url in said.out.replace("\n", "").replace(" ", "")


def test_it_stops_at_a_price_and_goes_on_from_there(mull: Mull, vendor: Vendor, sums: Path, tmp_path: Path) -> None:
    words = ("eval", "adder", "--task", sums, "--out", tmp_path / "e", "--usd-per-hour", 0)
    said = mull(*words, "--max-cost", 0.1)
    assert said.code == 0, said.err
    assert "Stopped at --max-cost $0.1" in " ".join(said.err.split())
    first = len(vendor.asked)
    assert 1 <= first < 12
    assert [r.outcome for r in answers(tmp_path / "e")] == ["solved"] * first  # of a part there is a report too
    assert mull(*words, "--max-cost", 0.05).code == 0
    assert len(vendor.asked) == first  # nothing is asked that is over the price already
    said = mull(*words, "-q")
    assert said.code == 0
    assert len(vendor.asked) == 12
    assert [r.outcome for r in answers(tmp_path / "e")] == ["solved"] * 12
    assert sum(one["messages"][-1]["content"].count("What is") for one in vendor.asked) == 12


def test_what_the_endpoint_failed_at_is_left_out_and_counted(
    mull: Mull, vendor: Vendor, sums: Path, tmp_path: Path
) -> None:
    vendor.faults = ["500", "500"]  # one request and its only other try, or one try each of two
    said = mull("eval", "adder", "--task", sums, "--n", 6, "--out", tmp_path / "e", "--json", "-q")
    (row,) = json.loads(said.out)["evals"]
    assert row["accuracy"] == 1.0
    assert row["outcomes"]["solved"] + row["outcomes"].get("infrastructure", 0) == 6


def test_two_evaluations_are_compared_from_their_files(
    mull: Mull, vendor: Vendor, sums: Path, tmp_path: Path
) -> None:
    mull("eval", "adder", "--task", sums, "--out", tmp_path / "a", "-q")
    vendor.answer = lambda asked: "The sum is 1."
    mull("eval", "adder", "--task", sums, "--out", tmp_path / "b", "-q")
    asked = len(vendor.asked)
    said = mull("compare", tmp_path / "a", tmp_path / "b")
    assert said.code == 0, said.err
    assert "better" in said.out
    row = json.loads(mull("compare", tmp_path / "a", tmp_path / "b", "--json").out)["rows"][0]
    assert (row["verdict"], row["better"], row["n"]) == ("better", 11, 12)
    assert len(vendor.asked) == asked


def test_a_model_that_is_here_beside_an_endpoint(
    mull: Mull, vendor: Vendor, sums: Path, done: Path, tmp_path: Path
) -> None:
    said = mull("eval", f"{done}:taught", "adder", "--task", sums, "--n", 3, "--max-tokens", 16,
                "--out", tmp_path / "e", "--json", "-q")  # fmt: skip
    assert said.code == 0, said.err
    rows = json.loads(said.out)["evals"]
    assert {row["model"]: row["answers"] for row in rows} == {"taught": 3, "adder": 3}


def test_an_interrupted_evaluation_asks_for_the_rest_only(
    mull: Mull, sums: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the fast mode too, where a model answers in this process."""
    from mull.stages import evaluate

    words = ("eval", f"{done}:taught", "--task", sums, "--max-tokens", 16, "--out", tmp_path / "e")
    came, real = [], evaluate._Sitter._came

    def interrupted(self: evaluate._Sitter, place: int, answer: object) -> None:
        real(self, place, answer)  # type: ignore[arg-type]
        came.append(place)
        if len(came) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(evaluate._Sitter, "_came", interrupted)
    said = mull(*words)
    assert said.code == 130
    assert "continue with" in said.err
    monkeypatch.setattr(evaluate._Sitter, "_came", lambda self, place, answer: came.append(place))
    assert mull(*words, "-q").code == 0
    assert sorted(came) == list(range(12))
    assert len(answers(tmp_path / "e")) == 12


def test_mistakes_are_one_line(
    refused: Callable[..., str], sums: Path, done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("MULL_DATA", "")
    out = ("--out", tmp_path / "e")
    assert "no such folder" in refused("eval", done, "--task", "gcd", "--data", tmp_path / "none", *out)
    assert "#MODEL" in refused("eval", "http://127.0.0.1:1/v1", "--task", sums, *out)
    assert "OPENAI_API_KEY" in refused("eval", "o3", "--task", sums, *out)
    assert "There is no" in refused("eval", "o33", "--task", sums, *out)
    assert "MULL_DATA" in refused("eval", done, "--task", "aime24", *out)
    assert "--judge" in refused("eval", done, "--task", "mt_bench", *out)
    assert not (tmp_path / "e").exists()
    assert "check" in refused("tasks", "gcd", "products")


def test_a_file_is_looked_through(mull: Mull, sums: Path) -> None:
    said = mull("tasks", "check", sums)
    assert said.code == 0, said.err
    assert "12 of 12" in said.out
    assert json.loads(mull("tasks", "check", sums, "--json").out)["solved"] == 12


def test_endpoints_are_listed_with_their_prices(mull: Mull, vendor: Vendor) -> None:
    listed = {one["name"]: one for one in json.loads(mull("models", "--json").out)["models"]}
    assert listed["adder"]["key"] is True
    assert listed["o3"]["priced"]
    assert "adder" in mull("models").out


def test_answers_that_never_came_are_asked_for_again(mull: Mull, vendor: Vendor, sums: Path, tmp_path: Path) -> None:
    vendor.faults = ["500", "500"]  # one request and its other try; the others come
    words = ("eval", "adder", "--task", sums, "--out", tmp_path / "e", "-q")
    said = mull(*words)
    lost = [r for r in answers(tmp_path / "e") if r.outcome == "infrastructure"]
    assert said.code == (1 if lost else 0)
    asked = len(vendor.asked)
    assert mull(*words).code == 0
    assert len(vendor.asked) == asked + len(lost)
    assert [r.outcome for r in answers(tmp_path / "e")] == ["solved"] * 12


def test_one_endpoints_refusal_is_not_the_end_of_the_others(
    mull: Mull, vendor: Vendor, sums: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = tmp_path / "two.toml"
    with serving(Vendor("vllm", always="403")) as closed:
        table = 'model = "thinker"\ndialect = "vllm"\nretries = 0\n'
        models.write_text(f'[closed]\nurl = "{closed.url}"\n{table}[open]\nurl = "{vendor.url}"\n{table}')
        monkeypatch.setenv("MULL_MODELS", str(models))
        said = mull("eval", "closed", "open", "--task", sums, "--out", tmp_path / "e")
    assert said.code == 1
    assert "eval_closed" in said.err
    assert {r.model for r in answers(tmp_path / "e")} == {"open"}
    assert "open" in said.out


def test_a_file_that_was_edited_is_another_task(
    mull: Mull, refused: Callable[..., str], vendor: Vendor, sums: Path, tmp_path: Path
) -> None:
    words = ("eval", "adder", "--task", sums, "--out", tmp_path / "e", "-q")
    assert mull(*words).code == 0
    sums.write_text(sums.read_text().replace('"answer": 5', '"answer": 6'))
    assert "another configuration" in refused(*words)
