"""Two saved runs against each other."""

from __future__ import annotations

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mull.report import stats
from mull.report.compare import compare
from mull.types import Completion, Message, Problem, Rollout, UserError, write_rollouts


def problem(i: int, task: str = "sums", words: str = "", gold: str = "") -> Problem:
    return Problem(task, f"{task}-{i}", (Message("user", words or f"What is {i} + {i}?\nSay it."),), gold or str(2 * i))


def answer(asked: Problem, outcome, model: str, thinking: bool = True, sample: int = 0, tokens: int = 10) -> Rollout:
    said = Completion(tuple(range(tokens)), (-0.5,) * tokens, "length" if outcome == "truncated" else "stop", outcome)
    return Rollout(asked, said, float(outcome == "solved"), outcome, 0.0, sample, model, thinking, (1, 2))


def saved(path: Path, *sets: list[Rollout], **facts) -> Path:
    """A run that holds these sets of answers, each of one model, task and mode."""
    (path / "rollouts").mkdir(parents=True, exist_ok=True)
    (path / "config.json").write_text(json.dumps({"fingerprint": "f", "config": {}}), encoding="utf-8")
    for rollouts in sets:
        first = rollouts[0]
        name = f"exam_{first.model}_{first.problem.task}_{'think' if first.thinking else 'direct'}"
        known = {
            "label": "held-out",
            "split": "test",
            "seconds": 8.0,
            "usd": 0.5,
            "size": {},
            "file": name,
            "stage": "exam",
        }
        (path / "rollouts" / f"{name}.json").write_text(json.dumps(known | facts), encoding="utf-8")
        write_rollouts(path / "rollouts" / f"{name}.jsonl", rollouts)
    return path


def graded(model: str, solved: set[int], n: int, task: str = "sums", **more) -> list[Rollout]:
    return [answer(problem(i, task), "solved" if i in solved else "wrong", model, **more) for i in range(n)]


def one_row(found: dict) -> dict:
    (row,) = found["rows"]
    return row


def test_it_is_the_paired_verdict_on_the_problems_both_answered(tmp_path):
    a = saved(tmp_path / "a", graded("big", set(range(60)), 100))
    b = saved(tmp_path / "b", graded("small", set(range(5, 55)), 100))
    found = compare(a, b)
    row = one_row(found)
    assert (found["a"]["model"], found["b"]["model"]) == ("big", "small")
    assert (row["better"], row["worse"], row["n"], row["verdict"]) == (10, 0, 100, "better")
    assert row["p"] == pytest.approx(2 / 2**11)
    assert row["a"]["accuracy"] == 0.6 and row["b"]["outcomes"] == {"solved": 50, "wrong": 50}
    assert row["a"]["usd_per_solved"] == pytest.approx(0.5 / 60)
    low, high = row["a"]["usd_per_solved_ci95"]
    assert low < 0.5 / 60 < high
    assert found["left_out"] == []
    turned = one_row(compare(b, a))
    assert turned["verdict"] == "worse" and turned["p"] == row["p"] and turned["difference"] == -row["difference"]
    assert "a is better than b" in found["lines"][0] and "+10.0 points" in found["lines"][0]
    json.dumps(found)  # plain data


def test_what_they_differ_on_is_listed_with_what_each_said(tmp_path):
    a = saved(tmp_path / "a", graded("m", {0, 1, 2, 3}, 40))
    b = saved(tmp_path / "b", graded("m", {2, 3, 4}, 40))
    differ = one_row(compare(a, b))["differ"]
    assert [row["id"] for row in differ] == ["sums-0", "sums-1", "sums-4"]
    assert differ[0]["asked"] == "What is 0 + 0?"
    assert differ[0]["a"] == {"solved": 1, "of": 1, "outcomes": ["solved"], "says": "solved"}
    assert differ[2]["a"]["outcomes"] == ["wrong"]


def test_cannot_tell_says_what_could_be_told_and_how_many_more_it_takes(tmp_path):
    rng = random.Random(1)
    a = saved(tmp_path / "a", graded("m", {i for i in range(80) if rng.random() < 0.55}, 80))
    b = saved(tmp_path / "b", graded("m", {i for i in range(80) if rng.random() < 0.5}, 80))
    row = one_row(compare(a, b))
    assert row["verdict"] == "cannot tell"
    assert 0.1 < row["smallest"] < 0.4
    assert row["problems_more"] == row["problems_needed"] - 80 > 0
    assert f"{row['problems_more']:,} more would decide" in row["line"]
    same = one_row(compare(a, a))
    assert same["difference"] == 0 and same["verdict"] == "cannot tell" and same["problems_more"] is None
    assert "guess" in same["line"] and same["differ"] == []


def test_a_question_whose_words_changed_is_named_and_not_compared(tmp_path):
    a = saved(tmp_path / "a", graded("m", {0, 1, 2, 3, 4}, 30))
    changed = graded("m", set(), 30)
    changed[3] = answer(problem(3, words="What is 3 + 4?"), "wrong", "m")
    changed[4] = answer(problem(4, gold="9"), "wrong", "m")
    b = saved(tmp_path / "b", changed)
    found = compare(a, b)
    assert one_row(found)["n"] == 28
    assert {(row["n"], tuple(row["ids"])) for row in found["left_out"]} == {(1, ("sums-3",)), (1, ("sums-4",))}
    assert any("words of the question" in line for line in found["lines"])
    assert any("held for right" in line for line in found["lines"])


def test_a_models_own_earlier_turns_do_not_make_it_another_question(tmp_path):
    def dialogue(said: str) -> Problem:
        turns = (Message("user", "Count."), Message("assistant", said), Message("user", "Backwards."))
        return Problem("talk", "1", turns, "")

    a = saved(tmp_path / "a", [answer(dialogue("1 2 3"), "solved", "m")])
    b = saved(tmp_path / "b", [answer(dialogue("one two"), "wrong", "m")])
    assert one_row(compare(a, b))["n"] == 1


def test_sets_and_problems_of_one_side_alone_are_named(tmp_path):
    a = saved(tmp_path / "a", graded("m", {1}, 20), graded("m", {1}, 20, task="extra"))
    b = saved(tmp_path / "b", graded("m", {1}, 30))
    found = compare(a, b)
    assert one_row(found)["task"] == "sums"
    lines = [row["line"] for row in found["left_out"]]
    assert lines[0] == "Not compared: extra, thinking: only a has it."
    assert "10 problems of sums, thinking: only b was asked" in lines[1]
    alone = saved(tmp_path / "c", graded("m", {1}, 20, task="extra"))
    with pytest.raises(UserError, match=r"no problem in common.*only b has it"):
        compare(alone, b)


def test_the_size_is_part_of_the_set(tmp_path):
    a = saved(tmp_path / "a", graded("m", {1}, 5), size={"terms": 3})
    b = saved(tmp_path / "b", graded("m", {1}, 5), size={"terms": 4})
    with pytest.raises(UserError, match="terms"):
        compare(a, b)


def test_infrastructure_is_left_out_and_counted(tmp_path):
    ours = graded("m", set(range(30)), 40)
    ours[7] = answer(problem(7), "infrastructure", "m")
    theirs = graded("m", set(range(20)), 40, sample=0)
    found = compare(saved(tmp_path / "a", ours), saved(tmp_path / "b", theirs))
    row = one_row(found)
    assert row["n"] == 39 and row["a"]["accuracy"] == pytest.approx(29 / 39)
    (left,) = found["left_out"]
    assert left["ids"] == ["sums-7"] and "machinery" in left["line"]


def test_money_is_the_share_of_what_was_compared(tmp_path):
    a = saved(tmp_path / "a", graded("m", set(range(50)), 100))
    b = saved(tmp_path / "b", graded("m", set(range(10)), 50))
    row = one_row(compare(a, b))
    assert row["a"]["usd"] == pytest.approx(0.25) and row["b"]["usd"] == pytest.approx(0.5)
    assert row["a"]["usd_per_solved"] == pytest.approx(0.005) and row["b"]["usd_per_solved"] == pytest.approx(0.05)


def test_over_several_tasks_there_is_one_verdict_and_each_task_has_holms_p(tmp_path):
    tasks = ["one", "two", "three", "four"]
    ours = [graded("m", set(range(30)), 60, task=t) for t in tasks]
    theirs = [graded("m", set(range(24 if t == "one" else 30)), 60, task=t) for t in tasks]
    found = compare(saved(tmp_path / "a", *ours), saved(tmp_path / "b", *theirs))
    whole, *rows = found["rows"]
    assert (whole["task"], whole["n"], len(rows)) == ("all tasks", 240, 4)
    assert whole["p"] == whole["p_adjusted"] == pytest.approx(1 / 2**6) and whole["verdict"] == "better"
    raw = {row["task"]: row["p"] for row in rows}
    assert [row["p_adjusted"] for row in rows] == stats.holm(list(raw.values()))
    (one,) = (row for row in rows if row["task"] == "one")
    assert one["p"] < 0.05 < one["p_adjusted"] and one["verdict"] == "cannot tell"
    assert "adjusted for the number of tasks" in one["line"]
    assert whole["a"]["answers"] == 240 and whole["a"]["usd"] == pytest.approx(2.0)


def test_repeated_answers_are_clusters_of_their_problem(tmp_path):
    def many(model: str, right: int) -> list[Rollout]:
        return [answer(problem(i), "solved" if k < right + i % 2 else "wrong", model, sample=k)
                for i in range(30) for k in range(8)]  # fmt: skip

    row = one_row(compare(saved(tmp_path / "a", many("m", 4)), saved(tmp_path / "b", many("m", 3))))
    assert (row["n"], row["better"], row["verdict"]) == (30, 30, "better")
    assert row["difference"] == pytest.approx(1 / 8)
    assert row["a"]["samples"] == 8 and row["differ"][0]["a"]["of"] == 8


def test_modes_are_compared_with_themselves_and_a_lonely_one_with_what_there_is(tmp_path):
    both = [graded("m", {1, 2}, 30), graded("m", {1}, 30, thinking=False)]
    a, b = saved(tmp_path / "a", *both), saved(tmp_path / "b", *both)
    found = compare(a, b)
    assert [row["a"]["thinking"] for row in found["rows"]] == [row["b"]["thinking"] for row in found["rows"]]
    assert len(found["rows"]) == 2
    direct = saved(tmp_path / "c", graded("m", {1}, 30, thinking=False))
    think = saved(tmp_path / "d", graded("m", {1}, 30))
    assert "a answered thinking, b at once" in one_row(compare(think, direct))["notes"]
    half = compare(a, direct)
    assert [row["a"]["thinking"] for row in half["rows"]] == [False]
    assert [row["line"] for row in half["left_out"]] == ["Not compared: sums, thinking: only a has it."]


def test_settings_that_differ_and_answers_without_a_verdict_are_noted(tmp_path):
    a = saved(tmp_path / "a", graded("m", {1}, 30), temperature=0.0, max_tokens=512)
    cut = [answer(problem(i), "truncated" if i < 6 else "solved", "m", sample=k) for i in range(30) for k in (0, 1)]
    b = saved(tmp_path / "b", cut, temperature=0.6, max_tokens=512)
    notes = one_row(compare(a, b))["notes"]
    assert "temperature: a 0.0, b 0.6 (sums)" in notes and "samples: a 1, b 2 (sums)" in notes
    assert not any("max tokens" in note for note in notes)
    assert any("of b's answers have no verdict" in note and "80.0" in note for note in notes)


def test_one_of_several_models_is_named_with_a_colon(tmp_path):
    a = saved(tmp_path / "a", graded("early", {1}, 30), graded("late", set(range(20)), 30))
    with pytest.raises(UserError, match="answers of early, late; say whose"):
        compare(a, a)
    row = one_row(compare(Path(f"{a}:late"), Path(f"{a}:early")))
    assert row["verdict"] == "better" and row["a"]["model"] == "late"
    (a / "models").mkdir()
    (a / "models" / "result.json").write_text('{"model": "late"}', encoding="utf-8")
    assert compare(a, a)["a"]["model"] == "late"
    with pytest.raises(UserError, match="say whose"):
        compare(Path(f"{a}:nobody"), a)


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path):
    a = saved(tmp_path / "a", graded("m", {1}, 3))
    with pytest.raises(UserError, match="no run at"):
        compare(tmp_path / "nowhere", a)
    empty = saved(tmp_path / "empty")
    with pytest.raises(UserError, match="no answers to problems yet"):
        compare(a, empty)
    (path,) = (a / "rollouts").glob("*.jsonl")
    path.write_text("{}\n", encoding="utf-8")
    with pytest.raises(UserError, match="line 1: not a rollout"):
        compare(a, a)


def test_it_reads_only_what_runs_have_kept(tmp_path):
    """The same figures from a copy elsewhere, twice."""
    a = saved(tmp_path / "a", graded("m", set(range(9)), 30))
    b = saved(tmp_path / "b", graded("m", set(range(4)), 30))
    first = compare(a, b)
    shutil.copytree(a, tmp_path / "copy")
    again = compare(tmp_path / "copy", b)
    assert again["rows"] == first["rows"] == compare(a, b)["rows"]


def test_training_rollouts_are_no_answers(tmp_path):
    a = saved(tmp_path / "a", graded("m", {1}, 3))
    write_rollouts(a / "rollouts" / "rl.jsonl", [replace(r, advantage=1.0) for r in graded("m", {0, 1, 2}, 3)])
    assert one_row(compare(a, a))["a"]["accuracy"] == pytest.approx(1 / 3)
