"""Dealing problems to splits, the taught families, and reading answers."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks import SPLITS, TASKS, TAUGHT, find
from mull.tasks.arithmetic import ChainSum, Gcd, Products, normalised, read_number
from mull.tasks.base import PATIENCE, deal, split_of
from mull.types import Completion, Problem, Rollout, UserError

FAMILIES = pytest.mark.parametrize("task", TAUGHT.values(), ids=TAUGHT)
LARGER: dict[str, dict[str, Any]] = {
    "chain_sum": {"terms": (5, 6), "digits": (4, 4)},
    "products": {"first": (4, 4), "second": (1, 2)},
    "gcd": {"values": (1000, 9999)},
}


def said(text: str, **more: Any) -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish=more.pop("finish", "stop"), text=text, **more)


def question(problem: Problem) -> str:
    return problem.messages[0].content


# dealing


def test_a_key_has_one_split_and_the_shares_are_as_stated():
    shares = Counter(split_of("t", str(i)) for i in range(20_000))
    assert shares["train"] / 20_000 == pytest.approx(0.8, abs=0.01)
    assert shares["validation"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert set(shares) == set(SPLITS)


def test_the_split_rule_never_changes():
    """Trained models outlive releases: another rule would let their training problems into the test split."""
    assert [split_of("gcd", key) for key in ("12 18", "7 8", "1 1", "9 99", "10 12", "5 7")] == [
        "train", "test", "train", "train", "train", "test",
    ]  # fmt: skip


def test_deal_makes_no_more_candidates_than_it_needs():
    made = []
    candidates = ((str(i), made.append(i) or i) for i in count())
    dealt = list(deal("t", "test", 5, candidates))
    assert len(dealt) == 5
    assert made[-1] == dealt[-1]
    assert list(deal("t", "test", 0, iter(()))) == []


def test_deal_stops_where_nothing_new_turns_up():
    candidates = [(str(i % 40), i % 40) for i in range(10 * PATIENCE)]
    held_out = list(deal("t", "test", 1000, candidates))
    assert sorted(held_out) == [i for i in range(40) if split_of("t", str(i)) == "test"]
    assert len(list(deal("t", "train", 1000, candidates))) == 1000  # training may repeat
    one = next(key for key in map(str, count()) if split_of("t", key) == "train")
    with pytest.raises(UserError, match="no test problem turned up"):
        list(deal("t", "test", 3, ((one, 0) for _ in count())))


def test_deal_says_what_is_wrong():
    with pytest.raises(UserError, match="Did you mean 'validation'"):
        list(deal("t", "validaton", 3, iter(())))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be -1"):
        list(deal("t", "train", -1, iter(())))


# names


def test_find_names_the_nearest():
    assert find("gcd") is TASKS["gcd"]
    for wrong, right in (("chainsum", "chain_sum"), ("sudoku", "gym/sudoku"), ("gym/sodoku", "gym/sudoku")):
        with pytest.raises(UserError, match=f"Did you mean '{right}'[?]"):
            find(wrong)


def test_every_task_has_its_name_and_a_line_about_it():
    assert all(task.name == name and task.about and "\n" not in task.about for name, task in TASKS.items())
    assert len([name for name in TASKS if name.startswith("gym/")]) == 105


def test_importing_tasks_loads_nothing_heavy():
    heavy = "{'torch', 'reasoning_gym', 'numpy', 'sympy'}"
    code = f"import sys, mull.tasks; print({heavy} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# the taught families


@FAMILIES
def test_splits_are_disjoint_across_seeds_and_sizes(task):
    keys = {
        split: {
            normalised(question(problem))
            for seed in (0, 1)
            for size in ({}, LARGER[task.name])
            for problem in task.problems(split, 600 if split == "train" else 200, seed, **size)
        }
        for split in SPLITS
    }
    for split in SPLITS:
        assert all(split_of(task.name, key) == split for key in keys[split])
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]


@FAMILIES
def test_held_out_problems_are_distinct_and_draws_only_grow(task):
    problems = task.problems("test", 400)
    assert len({normalised(question(p)) for p in problems}) == len({p.id for p in problems}) == 400
    assert task.problems("test", 50) == problems[:50]
    assert task.problems("test", 50, seed=1) != problems[:50]


@FAMILIES
def test_problems_are_the_same_in_every_process(task):
    code = f"from mull.tasks import find; print([p.id for p in find({task.name!r}).problems('test', 20, 7)])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([p.id for p in task.problems("test", 20, 7)])


@FAMILIES
def test_defaults_hold_every_size_that_is_taught(task):
    sizes = Counter(p.meta["size"] for p in task.problems("train", 3000))
    expected = {
        "chain_sum": {f"{t} terms x {d}" for t in (2, 3, 4) for d in ("1 digit", "2 digits", "3 digits")},
        "products": {f"{a} x {b}" for a in (1, 2, 3) for b in ("1 digit", "2 digits")},
        "gcd": {f"{a} and {b} digit{'s' * (b > 1)}" for a in (1, 2, 3) for b in range(1, a + 1)},
    }[task.name]
    assert set(sizes) <= expected
    assert expected - set(sizes) <= {"1 and 1 digit"}  # one gcd in ten thousand


def test_larger_sizes_are_what_was_asked_for():
    for p in find("chain_sum").problems("test", 50, **LARGER["chain_sum"]):
        assert len(p.meta["operands"]) in (5, 6)
        assert all(1000 <= n <= 9999 for n in p.meta["operands"])
    for p in find("products").problems("test", 50, **LARGER["products"]):
        assert [len(str(n)) for n in p.meta["operands"]] in ([4, 1], [4, 2])
    for p in find("gcd").problems("test", 50, **LARGER["gcd"]):
        assert p.meta["size"] == "4 and 4 digits"
    assert find("chain_sum").problems("test", 5, terms=5) == find("chain_sum").problems("test", 5, terms=[5, 5])


def test_a_size_with_few_problems_gives_each_once():
    problems = find("chain_sum").problems("test", 500, terms=2, digits=1)
    assert 5 < len(problems) < 40
    assert len({normalised(question(p)) for p in problems}) == len(problems)


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"digit": (1, 3)}, "no size \"digit\".*Did you mean 'digits'"),
        ({"terms": (4, 2)}, "terms is a range"),
        ({"terms": (0, 2)}, "terms is a range"),
        ({"terms": "many"}, "not 'many'"),
        ({"terms": (1.5, 2)}, "terms is a range"),
    ],
)
def test_a_wrong_size_is_told(size, says):
    with pytest.raises(UserError, match=says):
        find("chain_sum").problems("test", 5, **size)


def test_the_order_of_numbers_does_not_change_the_split():
    assert normalised(Products.drawn(12, 34).question) == normalised(Products.drawn(34, 12).question)
    assert normalised(Gcd.drawn(12, 34).question) == normalised(Gcd.drawn(34, 12).question)
    one = ChainSum.drawn([5, 2, 1], [1, -1, 1], 1)
    assert one.question.endswith(" 5 - 2 + 1 =")
    assert normalised(one.question) == normalised(ChainSum.drawn([1, 5, 2], [1, 1, -1], 1).question)
    assert normalised(one.question) != normalised(ChainSum.drawn([5, 2, 1], [1, 1, -1], 1).question)


@FAMILIES
@pytest.mark.parametrize("larger", [False, True])
def test_gold_scores_one_and_the_chain_ends_in_it(task, larger):
    for problem in task.problems("train", 150, **(LARGER[task.name] if larger else {})):
        message = task.solution(problem)
        assert message.role == "assistant"
        assert message.content == problem.answer
        assert message.reasoning.splitlines()[-1] == problem.answer
        assert task.grade(problem, said(message.content)) == (1.0, "solved")
        assert task.grade(problem, said(str(int(problem.answer) + 1))) == (0.0, "wrong")


@FAMILIES
def test_what_came_to_no_answer_is_named(task):
    [problem] = task.problems("test", 1)
    assert task.grade(problem, said(problem.answer, finish="length")) == (0.0, "truncated")
    assert task.grade(problem, said(problem.answer, finish="cancelled")) == (0.0, "infrastructure")
    assert task.grade(problem, said("", reasoning=problem.answer)) == (0.0, "unparsed")
    assert task.grade(problem, said("I do not know.")) == (0.0, "unparsed")


@FAMILIES
def test_a_rollout_on_disk_grades_and_solves_as_before(task):
    [problem] = task.problems("test", 1)
    back = Rollout.from_json(Rollout(problem, said(problem.answer), 1.0, "solved").to_json())
    assert back.problem == problem
    assert task.grade(back.problem, back.completion) == (1.0, "solved")
    assert task.solution(back.problem) == task.solution(problem)


# reading answers


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("46", 46), (" 46\n", 46), ("46.", 46), ("+46", 46), ("-46", -46), ("\u221246", -46), ("007", 7), ("46.0", 46),
        ("1,234", 1234), ("-1,234,567.", -1234567), ("The answer is 46.", 46), ("the final answer is: -46", -46),
        ("Answer: 46", 46), ("**Answer:** 46", 46), ("**Answer**: 46", 46), ("#### 46", 46), (r"\boxed{46}", 46),
        (r"The answer is $\boxed{1,234}$.", 1234), ("<answer> 46 </answer>", 46), ("The sum is 46.", 46), ("= 46", 46),
        ("12 + 34 = 46", 46), ("12 * 34 = 408.", 408), ("The answer is 46, so 46.", 46), ("46 (46)", 46),
    ],
)  # fmt: skip
def test_answers_that_are_read(text, value):
    assert read_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "", "no idea", "46 47", "46 or 47", "46-46", "12 + 34 is 46", "The answer is 46 or 47", "#### 46\n#### 47",
        r"\boxed{46} \boxed{47}", "The answer is 46. The answer is 47.", "12 + 34 = 40 + 6 = 46", "46/1", "1,23",
        "1234,567", "1,2345", "4e6", "The answer is", "\u0664\u0666",
    ],
)  # fmt: skip
def test_answers_that_are_not_read(text):
    assert read_number(text) is None


@pytest.mark.parametrize("text", ["46.5", ".46", "-46", "4 6", "460", "0.46e2", "46" * 9999])
def test_near_misses_of_46_do_not_score(text):
    problem = Problem("products", "", (), "46")
    assert find("products").grade(problem, said(text))[0] == 0.0


@given(st.text(alphabet=st.sampled_from("0123456789.,-+= \n#answer is:\\boxed{}<>/\ud800e\u0664"), max_size=60))
def test_no_text_breaks_the_grader(text):
    reward, outcome = find("gcd").grade(Problem("gcd", "", (), "12"), said(text))
    assert (reward, outcome) in ((1.0, "solved"), (0.0, "wrong"), (0.0, "unparsed"))


@given(st.integers())
def test_every_integer_is_read_as_written(n):
    assert read_number(str(n)) == read_number(f"{n:,}") == read_number(f"The answer is {n}.") == n
