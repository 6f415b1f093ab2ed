"""IFEval as a task: reading its file, strict and loose, words by instruction."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mull.tasks import data
from mull.tasks.base import Examining, Golden
from mull.tasks.ifeval import IFEval, accuracies, problem_of, variants
from mull.tasks.instructions import CHECKS
from mull.types import Completion, Problem, UserError

DATA = Path(__file__).parents[1] / ".." / "shared" / "data"
ROW: dict[str, Any] = {
    "key": 7,
    "prompt": "Write about tea. No commas. At least two words.",
    "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words", "startend:quotation"],
    "kwargs": [{"num_words": None}, {"num_words": 2, "relation": "at least"}, {}],
}


def said(text: str, **more: Any) -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish=more.pop("finish", "stop"), text=text, **more)


@pytest.fixture
def problem() -> Problem:
    return problem_of(ROW)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rows = [{**ROW, "key": i, "instruction_id_list": ROW["instruction_id_list"]} for i in range(20)]
    (tmp_path / "ifeval.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    monkeypatch.setenv(data.FOLDER, str(tmp_path))
    return tmp_path


def test_an_answer_that_follows_all_is_solved(problem: Problem):
    verdict = IFEval().judge(problem, said('"Tea is good"'))
    assert (verdict.reward, verdict.outcome) == (1.0, "solved")
    assert verdict.words == {
        "punctuation:no_comma": "followed",
        "length_constraints:number_words": "followed",
        "startend:quotation": "followed",
        "loose": "followed",
    }
    assert IFEval().grade(problem, said('"Tea is good"')) == (1.0, "solved")


def test_an_answer_that_follows_some_is_wrong_and_says_which(problem: Problem):
    verdict = IFEval().judge(problem, said('"Tea"'))
    assert (verdict.reward, verdict.outcome) == (pytest.approx(2 / 3), "wrong")
    assert verdict.words["length_constraints:number_words"] == "1 words, asked for at least 2"
    assert verdict.words["loose"] == "not followed"


def test_loose_forgives_a_first_line_and_asterisks(problem: Problem):
    verdict = IFEval().judge(problem, said('Sure, here it is:\n**"Tea is good"**'))
    assert verdict.outcome == "wrong"
    assert verdict.words["loose"] == "followed"


def test_loose_takes_the_best_variant_for_each_instruction_alone(problem: Problem):
    """As the original does: no one variant needs to follow all."""
    verdict = IFEval().judge(problem, said('"x, y"\n"Tea"'))
    assert verdict.words["loose"] == "followed"
    assert verdict.outcome == "wrong"


def test_there_are_eight_variants():
    assert set(variants("a\n*b*\nc")) == {"a\n*b*\nc", "a\nb\nc", "*b*\nc", "b\nc", "a\n*b*", "a\nb", "*b*", "b"}
    assert list(variants("")) == [""] * 8


def test_answers_without_an_end_or_a_text(problem: Problem):
    assert IFEval().grade(problem, said('"Tea is good"', finish="length")) == (0.0, "truncated")
    assert IFEval().grade(problem, said('"Tea is good"', finish="cancelled")) == (0.0, "infrastructure")
    verdict = IFEval().judge(problem, said(" "))
    assert (verdict.reward, verdict.outcome) == (0.0, "wrong")
    assert set(verdict.words.values()) == {"the answer is empty", "not followed"}


def test_the_four_usual_figures(problem: Problem):
    """Three instructions to each answer."""
    answers = ['"Tea is good"', 'Sure:\n**"Tea is good"**', '"Tea"', "a, b"]
    words = [IFEval().judge(problem, said(text)).words for text in answers]
    assert words[1]["startend:quotation"] == "is not between double quotation marks; followed when read loosely"
    assert accuracies(words) == pytest.approx(
        {
            "prompt, strict": 1 / 4,
            "prompt, loose": 2 / 4,
            "instruction, strict": (3 + 2 + 2 + 1) / 12,
            "instruction, loose": (3 + 3 + 2 + 1) / 12,
        }
    )
    assert set(accuracies([]).values()) == {0.0}


def test_the_thinking_is_not_judged(problem: Problem):
    assert IFEval().grade(problem, said('"Tea is good"', reasoning="First, no commas, then quotes."))[1] == "solved"


def test_one_kind_asked_twice_has_two_words():
    row = {
        **ROW,
        "instruction_id_list": ["keywords:existence"] * 2,
        "kwargs": [{"keywords": ["a"]}, {"keywords": ["b"]}],
    }
    verdict = IFEval().judge(problem_of(row), said("b"))
    assert verdict.words["keywords:existence"] == "without a"
    assert verdict.words["keywords:existence (2)"] == "followed"


def test_problems_come_in_an_order_of_the_seed(folder: Path):
    task = IFEval()
    assert [p.id for p in task.problems("test", 5, 1)] == [p.id for p in task.problems("test", 9, 1)][:5]
    assert [p.id for p in task.problems("test", 20, 1)] != [p.id for p in task.problems("test", 20, 2)]
    assert len(task.problems("test", 99)) == 20


def test_what_it_does_not_have_is_a_users_error(folder: Path, monkeypatch: pytest.MonkeyPatch):
    task = IFEval()
    with pytest.raises(UserError, match='only the split "test"'):
        task.problems("train", 1)
    with pytest.raises(UserError, match="no sizes"):
        task.problems("test", 1, turns=2)
    assert isinstance(task, Examining)
    assert not isinstance(task, Golden)
    (folder / "ifeval.jsonl").write_text(json.dumps({**ROW, "instruction_id_list": ["a:b"] * 3}))
    data._read.cache_clear()
    with pytest.raises(UserError, match="no instruction"):
        task.problems("test", 1)


def test_without_langdetect_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch):
    row = {**ROW, "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert IFEval().problems("test", 1)  # none of these asks for a language
    (folder / "ifeval.jsonl").write_text(json.dumps(row))
    data._read.cache_clear()
    with pytest.raises(UserError, match="pip install 'langdetect"):
        IFEval().problems("test", 1)


@pytest.mark.skipif(not DATA.is_dir(), reason="the published file is not at ../shared/data")
def test_the_published_file_is_understood(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(data.FOLDER, str(DATA))
    problems = IFEval().problems("test", 1000)
    assert len(problems) == 541
    assert {item["id"] for p in problems for item in p.meta["instructions"]} == set(CHECKS)
    for problem in problems:
        text = problem.messages[0].content
        verdict = IFEval().judge(problem, said(text))
        assert len(verdict.words) == len(problem.meta["instructions"]) + 1
        if verdict.outcome == "solved":
            assert verdict.words["loose"] == "followed"
    assert data.is_known("ifeval")


@pytest.mark.skipif(not DATA.is_dir(), reason="the published file is not at ../shared/data")
def test_prompts_that_nobody_can_solve_are_errata(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(data.FOLDER, str(DATA))
    errata = data.errata("ifeval")
    assert set(errata) == {"337", "374", "1627", "3369", "3371", "3718"}
    assert set(errata) <= {problem.id for problem in IFEval().problems("test", 1000)}
