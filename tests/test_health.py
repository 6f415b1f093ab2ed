"""The sheet that is read before any score, from runs on disk into which weaknesses were put."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mull.report import stats
from mull.report.health import asked, health, of_run
from mull.report.overlap import Training
from mull.report.summary import read_exams
from mull.tasks import data
from mull.types import Completion, Message, Problem, Rollout, write_rollouts

STORY = "A baker in the old town near the harbour bakes {} loaves each morning and sells every one of them for {} coins"


def problem(i: int, task: str, **meta) -> Problem:
    """No two of them share thirteen words in a row, but for their numbers."""
    return Problem(task, str(i), (Message("user", STORY.format(1000 + i, 7000 + i)),), "1", meta)


def graded(model: str, task: str, n: int, solves: Callable[[int], bool], *, samples: int = 1, **more) -> list[Rollout]:
    found = []
    for i in range(n):
        asked_of = more["problems"][i] if "problems" in more else problem(i, task)
        for k in range(samples):
            right = solves(i + k)
            said = Completion((1,), (-0.1,), "stop", str(int(right)))
            outcome = more.get("outcome", "solved" if right else "wrong")
            found.append(Rollout(asked_of, said, float(right), outcome, 0.0, k, model, more.get("thinking", True)))
    return found


def saved(path: Path, *sets: list[Rollout], **facts) -> Path:
    (path / "rollouts").mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"fingerprint": "f", "config": {}}), encoding="utf-8")
    for rollouts in sets:
        first = rollouts[0]
        name = f"{first.model}_{first.problem.task}_{first.thinking}"
        known = {
            "label": "held-out",
            "split": "test",
            "seconds": 1.0,
            "usd": 0.1,
            "size": {},
            "file": name,
            "stage": "e",
        }
        (path / "rollouts" / f"{name}.json").write_text(json.dumps(known | facts), encoding="utf-8")
        write_rollouts(path / "rollouts" / f"{name}.jsonl", rollouts)
    return path


def about(rows: list[dict], name: str) -> list[dict]:
    return [row for row in rows if row["about"] == name]


def test_problems_that_everybody_or_nobody_solves_tell_nobody_apart(tmp_path):
    run = saved(
        tmp_path / "run",
        graded("a", "own", 200, lambda i: i < 120),
        graded("b", "own", 200, lambda i: 40 <= i < 140),
    )
    (row,) = about(of_run(run), "range")
    assert (row["n"], row["targets"]) == (200, 2)
    assert (row["solved_by_all"], row["solved_by_none"], row["apart"]) == (80, 60, 60)
    assert row["worth"] == pytest.approx(200 * (4 * 0.6 * 0.4 + 1) / 2)
    assert row["level"] == "note"
    assert "all 2 targets solve 80 of them and none solves 60, so 60 tell them apart" in row["line"]


def test_a_ceiling_is_a_warning(tmp_path):
    (row,) = about(of_run(saved(tmp_path / "run", graded("a", "own", 300, lambda i: i > 4))), "range")
    assert row["level"] == "warning" and row["ci95"][1] > 0.97
    assert "Ceiling: a solves 98.3" in row["line"] and row["worth"] < 25
    (fine,) = about(of_run(saved(tmp_path / "fine", graded("a", "own", 300, lambda i: i > 30))), "range")
    assert fine["level"] == "note"


def test_a_floor_and_sets_that_tell_hardly_anything(tmp_path):
    (floor,) = about(of_run(saved(tmp_path / "floor", graded("a", "own", 300, lambda i: False))), "range")
    assert floor["level"] == "warning" and "Floor" in floor["line"] and floor["worth"] == 0
    alike = [graded(name, "own", 300, lambda i, more=more: i < 150 + more) for more, name in enumerate("abc")]
    (row,) = about(of_run(saved(tmp_path / "alike", *alike)), "range")
    assert row["apart"] == 2 and row["level"] == "warning" and "Hardly any problem" in row["line"]
    (small,) = about(of_run(saved(tmp_path / "small", graded("a", "own", 30, lambda i: i % 2 == 0))), "range")
    assert "It is small: the interval reaches" in small["line"]


def test_a_problem_solved_now_and_then_tells_models_apart(tmp_path):
    (row,) = about(of_run(saved(tmp_path / "run", graded("a", "own", 50, lambda i: i % 5 == 0, samples=4))), "range")
    assert (row["solved_by_all"], row["solved_by_none"], row["apart"]) == (0, 10, 40)


def test_without_a_single_score_nothing_can_be_said(tmp_path):
    failed = graded("a", "own", 3, lambda i: False, outcome="infrastructure")
    (row,) = about(of_run(saved(tmp_path / "run", failed)), "range")
    assert row["level"] == "warning" and "no answer was scored" in row["line"]
    assert health([]) == []


@pytest.fixture
def copy(tmp_path, monkeypatch) -> Callable[[int], None]:
    """A copy of a known set, of our own making."""

    def make(rows: int) -> None:
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        sums = [i + (5 if i == 2 else 1) for i in range(rows)]
        lines = [{"question": STORY.format(i, i), "answer": f"{i}+1=<<{i}+1={total}>>.\n#### {i + 1}"}
                 for i, total in enumerate(sums)]  # fmt: skip
        (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        monkeypatch.setenv(data.FOLDER, str(folder))

    return make


def test_a_copy_that_differs_and_answers_that_are_known_to_be_wrong_are_named(tmp_path, copy):
    copy(60)
    rows = of_run(saved(tmp_path / "run", graded("a", "gsm8k", 60, lambda i: i % 2 == 0)))
    (state,) = about(rows, "copy")
    assert state["level"] == "warning" and state["line"] == data.state("gsm8k")
    (errata,) = about(rows, "errata")
    assert list(errata["ids"]) == ["2"] and "1 of the problems asked are known to be wrong" in errata["line"]
    # those that were not asked are nobody's trouble
    assert not about(of_run(saved(tmp_path / "two", graded("a", "gsm8k", 2, lambda i: True))), "errata")


def test_a_set_that_is_not_there_any_more_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER, str(tmp_path))
    monkeypatch.setitem(data.SOURCES, "gsm8k", data.Source("gone.jsonl", "0" * 64, 1, ("question",)))
    (row,) = about(of_run(saved(tmp_path / "run", graded("a", "gsm8k", 40, lambda i: i % 2 == 0))), "copy")
    assert row["level"] == "warning" and "could not be looked at" in row["line"]


def test_a_question_asked_twice_is_counted(tmp_path):
    problems = [problem(i, "own") for i in range(40)] + [Problem("own", "again", problem(3, "own").messages, "1")]
    run = saved(tmp_path / "run", graded("a", "own", 41, lambda i: i % 2 == 0, problems=problems))
    assert len(asked(run)["own"]) == 41
    (row,) = about(of_run(run), "twice")
    assert row["n"] == 1 and "1 of 41 questions are asked twice" in row["line"]
    assert not about(of_run(saved(tmp_path / "b", graded("a", "own", 40, lambda i: True))), "twice")


def test_overlap_is_said_where_training_text_is_known(tmp_path):
    run = saved(tmp_path / "run", graded("a", "own", 40, lambda i: i % 2 == 0))
    (unknown,) = about(of_run(run), "overlap")
    assert unknown["level"] == "note" and "no text is known" in unknown["line"]
    text = tmp_path / "text.txt"
    text.write_text(problem(7, "own").messages[0].content, encoding="utf-8")
    (row,) = about(of_run(run, [text]), "overlap")
    assert (row["level"], row["exact"]) == ("warning", 1)
    assert row["line"].startswith("own: Overlap with")
    assert not about(health(read_exams(run), asked(run)), "overlap")
    assert about(health(read_exams(run), asked(run), Training()), "overlap")


def with_variants(path: Path, published: Callable[[int], bool], fresh: Callable[[int], bool]) -> Path:
    variants = [problem(1000 + i, "own-fresh", of=str(i)) for i in range(100)]
    return saved(
        path, graded("a", "own", 150, published), graded("a", "own-fresh", 100, fresh, problems=variants),
        graded("b", "own-fresh", 100, fresh, problems=variants),
    )  # fmt: skip


def test_better_at_the_published_problems_than_at_fresh_ones_is_a_warning(tmp_path):
    rows = of_run(with_variants(tmp_path / "run", lambda i: i < 80, lambda i: i < 60))
    (row,) = about(rows, "fresh")  # b never saw the published ones
    assert (row["model"], row["n"], row["verdict"], row["level"]) == ("a", 100, "better", "warning")
    assert row["difference"] == pytest.approx(0.2)
    same = stats.paired({i: float(i < 80) for i in range(100)}, {i: float(i < 60) for i in range(100)})
    assert same is not None
    assert (row["ci95"], row["p"]) == ([same.low, same.high], same.p)
    assert "learnt the answers by heart" in row["line"]


def test_equally_good_at_both_is_no_sign_of_memory_and_says_what_would_be_one(tmp_path):
    (row,) = about(of_run(with_variants(tmp_path / "run", lambda i: i < 80, lambda i: 1 < i < 82)), "fresh")
    assert (row["verdict"], row["level"]) == ("cannot tell", "note")
    assert "no sign of memory" in row["line"] and "points would show" in row["line"]


def test_warnings_come_first_and_all_of_it_is_plain_data(tmp_path):
    rows = of_run(with_variants(tmp_path / "run", lambda i: True, lambda i: i < 60))
    levels = [row["level"] for row in rows]
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == 2
    assert json.loads(json.dumps(rows)) == rows
    assert all(row["line"].endswith(".") for row in rows)
