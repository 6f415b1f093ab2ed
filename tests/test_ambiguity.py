"""Ambiguity: what counts as asking, abstaining, assuming; no policy without judgement gets more than half."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks.ambiguity import STORIES, VARIANTS, Ambiguity, Drawn, read, twins
from mull.tasks.base import Examining, Golden
from mull.types import Completion, Message, Problem, Rollout, UserError

TASK = Ambiguity()


def said(text: str, **more: Any) -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish=more.pop("finish", "stop"), text=text, **more)


def names(cues: list[str], words: str) -> bool:
    problem = Problem("ambiguity", "x", (), "", {"variant": "underspecified", "name": "it", "cues": cues})
    return TASK.judge(problem, said(f"QUESTION: {words}")).outcome == "solved"


def problem_of(drawn: Drawn) -> Problem:
    return Problem("ambiguity", "x", (Message("user", drawn.text),), drawn.answer, drawn.meta)


def pair(story: str, variant: str, place: int) -> tuple[Problem, Problem]:
    """(incomplete, complete) twins about one quantity of a story."""
    for seed in range(1000):
        both = twins(Random(seed), story, variant, 0)
        if both[0].meta["place"] == place:
            return problem_of(both[0]), problem_of(both[1])
    raise AssertionError


def judged(problem: Problem, text: str) -> tuple[str, str]:
    verdict = TASK.judge(problem, said(text))
    assert verdict.reward == float(verdict.outcome == "solved")
    return verdict.outcome, verdict.words["judgement"]


LESSON, COMPLETE = pair("course", "underspecified", 1)  # the length of a lesson is missing
PER_WEEK, _, WEEKS = LESSON.meta["values"]


@pytest.mark.parametrize(
    "text",
    [
        "QUESTION: How long is a lesson?",
        "Let me see.\n\nQUESTION: What is the duration of each class?",
        "**QUESTION:** how many minutes does one lesson last?",
        "CANNOT: the length of the lessons is not given",
        "cannot: It is not said how long a lesson takes.",
        "CANNOT:\nThe text does not say how many minutes a session has.",
        f"ASSUMING a lesson lasts 60 minutes: ANSWER: {60 * PER_WEEK * WEEKS}",
        f"ASSUMING each lesson is 45.5 minutes long, ANSWER: {45.5 * PER_WEEK * WEEKS}",
        f"> *ASSUMING that the {PER_WEEK} lessons last 60 minutes each*: **ANSWER: {60 * PER_WEEK * WEEKS:,}**",
        "ANSWER: 12\nOn second thought:\nQUESTION: how long is a lesson?",
    ],
)
def test_right_where_a_quantity_is_missing(text: str):
    assert judged(LESSON, text)[0] == "solved", judged(LESSON, text)
    outcome, words = judged(COMPLETE, text)
    assert outcome == "wrong"
    assert words.startswith("over-cautious")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"ANSWER: {60 * PER_WEEK * WEEKS}", "confident number"),
        ("Assuming an hour a lesson.\nANSWER: 3000", "confident number"),
        ("QUESTION: How many weeks does the course run?", "asked without naming the length of a lesson"),
        ("QUESTION: What do you mean?", "asked without naming"),
        ("QUESTION:", "asked without naming"),
        ("CANNOT: there is not enough information", "abstained without naming"),
        ("CANNOT: it is ambiguous", "abstained without naming"),
        ("ASSUMING a lesson lasts 60 minutes: ANSWER: 17", "does not follow"),
        ("ASSUMING the usual length of a lesson: ANSWER: 3000", "assumed without naming"),
        (f"ASSUMING 60 of them: ANSWER: {60 * PER_WEEK * WEEKS}", "assumed without naming"),
        ("ASSUMING a lesson lasts 1, 2, 3, 4 or 5 minutes: ANSWER: 60", "assumed without naming"),
    ],
)
def test_wrong_where_a_quantity_is_missing(text: str, words: str):
    outcome, judgement = judged(LESSON, text)
    assert outcome == "wrong"
    assert words in judgement


# how people ask, by story and quantity, written without looking at the cues
CAST = {"a": "Ada", "b": "Ben", "c": "Carla", "x": "mug", "y": "pen", "s": "Arden", "t": "Corvo", "v": "bus"}
ASKED: dict[str, list[list[str]]] = {
    "shopping": [
        ["How many mugs does Ada buy?", "the quantity of mugs is unknown", "The number of mugs is not stated."],
        ["What does one mug cost?", "How much is a mug?",
         "the price per mug is missing", "How many euros is each mug?"],
        ["How many pens are bought?", "number of pens", "The text does not say how many pens Ada takes."],
        ["What is the price of a pen?", "How much does a pen cost in euros?",
         "two different prices are given for a pen"],
    ],
    "travel": [
        ["How long does the first leg take?", "How many hours is the bus on the first leg?", "duration of leg 1"],
        ["How fast does it go on the first leg?", "the bus's speed on the first leg", "average speed, first leg"],
        ["How long does the second leg last?", "the time for the second leg is missing", "how many hours: 2nd leg?"],
        ["What is the speed of the bus on the second leg?", "How fast is the second leg?"],
    ],
    "ages": [
        ["How old is Ada?", "What is Ada's age?", "Ada's current age is not given"],
        ["How much older is Ben than Ada?", "How old is Ben?", "the age difference between Ada and Ben",
         "How is Ben's age related to Ada's?"],
        ["How many times as old as Ben is Carla?", "the relationship of Carla's age to Ben's",
         "ratio of Carla's and Ben's ages"],
    ],
    "mixture": [
        ["How many litres are in the red jug?", "How much lemonade is in the red jug?", "the volume of the red jug"],
        ["How much sugar does the red jug have per litre?", "the sugar content of the red lemonade",
         "grams of sugar (red)"],
        ["How many liters does the blue jug hold?", "What is the volume of the blue jug?", "amount in the blue jug"],
        ["How many grams of sugar does a litre from the blue jug have?", "the sugar concentration of the blue jug"],
    ],
    "course": [
        ["How many lessons are there per week?", "the number of lessons each week", "How often in a week are classes?",
         "How often per week does the course meet?"],
        ["How long is one lesson?", "How many minutes does a class last?", "the lesson duration is contradictory"],
        ["For how many weeks does the course run?", "How long is the course?", "the course's length in weeks"],
    ],
    "bakery": [
        ["How many ovens does the bakery have?", "The number of ovens is contradictory.", "count of ovens"],
        ["How many trays fit in an oven?", "How many trays does each oven take?",
         "trays per oven: the number is unclear"],
        ["How many rolls are on a tray?", "the number of rolls per tray", "How many rolls does each tray hold?"],
    ],
    "fence": [
        ["How long is the garden?", "What is the length of the garden?", "the garden's length is given as two values"],
        ["How wide is the garden?", "the width is missing", "What is the garden's breadth?"],
        ["What does a metre of fence cost?", "How much is the fence per meter?", "price per metre"],
    ],
    "savings": [
        ["How much money did Ada have at the start?", "What was the initial amount?",
         "How many euros were in the box?"],
        ["How much does Ada save each week?", "the weekly amount saved", "How many euros are added per week?"],
        ["For how many weeks does Ada save?", "the number of weeks is unknown", "How long does Ada save?"],
        ["How much does the present cost?", "What is the price of the gift?"],
    ],
    "reading": [
        ["How many pages does the novel have?", "the total number of pages of the book", "How long is the novel?"],
        ["How many pages had Ada read before the holidays?", "pages already read at the start",
         "How far was she before?"],
        ["How many pages does Ada read per day?", "the daily number of pages", "Her reading rate in pages a day"],
        ["How many days do the holidays last?", "the length of the holidays in days", "How long are the holidays?"],
    ],
    "feast": [
        ["How many guests come?", "the number of guests", "How many people attend the feast?"],
        ["How much flour does each guest need?", "grams of flour per person", "flour per guest is missing"],
        ["How much flour is for dusting the board?", "the extra flour", "additional flour needed for the board"],
    ],
}  # fmt: skip


# two relations with the same person: words cannot tell them apart
BLURRED = {
    "How is Ben's age related to Ada's?", "the relationship of Carla's age to Ben's", "ratio of Carla's and Ben's ages",
}  # fmt: skip


@pytest.mark.parametrize("story", STORIES)
def test_questions_as_people_ask_them_name_their_quantity_and_no_other(story: str):
    cues = [[cue.format(**CAST) for cue in quantity.cues] for quantity in STORIES[story].quantities]
    assert len(cues) == len(ASKED[story])
    for own, questions in enumerate(ASKED[story]):
        for question in questions:
            named = [i for i, cue in enumerate(cues) if names(cue, question)]
            assert own in named, (question, cues[own])
            assert len(named) == 1 or question in BLURRED, (question, named)


def test_of_a_contradiction_both_values_or_the_name_will_do_and_an_assumption_takes_one_of_them():
    problem, complete = pair("fence", "contradictory", 0)
    one, other = problem.meta["stated"]
    _, width, price = problem.meta["values"]
    assert judged(problem, f"CANNOT: it says {one} and then {other}")[0] == "solved"
    assert judged(problem, "QUESTION: what is the right length?")[0] == "solved"
    assert judged(problem, f"ASSUMING a length of {other}: ANSWER: {2 * (other + width) * price}")[0] == "solved"
    assert (
        judged(problem, f"ASSUMING a length of {one}, not {other}: ANSWER: {2 * (one + width) * price}")[0] == "solved"
    )
    assert judged(problem, f"CANNOT: it says {one}")[0] == "wrong"
    assert "does not give" in judged(problem, f"ASSUMING a length of 99: ANSWER: {2 * (99 + width) * price}")[1]
    assert judged(problem, f"ANSWER: {complete.answer}")[0] == "wrong"
    assert judged(complete, f"ANSWER: {complete.answer}")[0] == "solved"


def test_what_the_text_is_silent_about_is_not_to_be_assumed():
    problem, _ = pair("ages", "unanswerable", 0)
    name = problem.meta["name"]
    assert judged(problem, f"CANNOT: nothing is said of {name}")[0] == "solved"
    assert judged(problem, f"QUESTION: what is {name}?")[0] == "solved"
    assert judged(problem, f"ASSUMING {name} is 3: ANSWER: 3") == ("wrong", "assumed the very thing that was asked")
    assert judged(problem, "ANSWER: 3")[0] == "wrong"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        ("ANSWER: {}", "solved"),
        ("It is 7.\n**Answer:** {}.", "solved"),
        ("ANSWER: \\boxed{{{}}}", "solved"),
        ("ANSWER: {} minutes", "solved"),
        ("ANSWER: {}.0", "solved"),
        ("ANSWER: 1{}", "wrong"),
        ("ANSWER: {} or 7", "unparsed"),
        ("ANSWER:", "unparsed"),
        ("ANSWER: many", "unparsed"),
        ("ANSWER: " + "9" * 5000, "unparsed"),
        ("ASSUMING a lesson lasts 9 minutes: ANSWER: it depends", "unparsed"),
        ("The answer is {}.", "unparsed"),
        ("", "unparsed"),
    ],
)
def test_numbers_and_forms(text: str, outcome: str):
    assert judged(COMPLETE, text.format(COMPLETE.answer))[0] == outcome


def test_answers_that_have_no_end():
    assert TASK.grade(COMPLETE, said("ANSWER: 1", finish="length")) == (0.0, "truncated")
    assert TASK.grade(COMPLETE, said("ANSWER: 1", finish="cancelled")) == (0.0, "infrastructure")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), st.integers(0, 3))
def test_every_problem_can_be_solved_in_every_way(seed: int, asides: int):
    for problem in TASK.problems("train", 12, seed, asides=asides):
        verdict = TASK.judge(problem, said(TASK.gold(problem)))
        assert verdict.outcome == "solved", (problem, verdict)
        meta, place, values = problem.meta, problem.meta["place"], problem.meta["values"]
        if meta["variant"] == "complete":
            continue
        for text in (f"QUESTION: {meta['name']}?", f"CANNOT: {meta['name']}"):
            assert judged(problem, text)[0] == "solved"
        if meta["variant"] != "unanswerable":
            value = meta["stated"][1] if meta["stated"] else 7
            result = STORIES[meta["story"]].answer(*values[:place], value, *values[place + 1 :])
            assert judged(problem, f"ASSUMING {meta['name']} is {value}: ANSWER: {result}")[0] == "solved"
            assert judged(problem, f"ASSUMING {meta['name']} is {value}: ANSWER: {result + 1}")[0] == "wrong"


def whole_text(problem: Problem) -> str:
    return "CANNOT: " + problem.messages[0].content.split("\n\n")[0].replace("\n", " ")


POLICIES: dict[str, Callable[[Problem], str]] = {
    "abstain": lambda p: "CANNOT: something is missing",
    "abstain and recite the problem": whole_text,
    "know what is missing, and never answer": lambda p: f"CANNOT: {p.meta['name']}",
    "know the number, and never ask": lambda p: f"ANSWER: {STORIES[p.meta['story']].answer(*p.meta['values'])}",
    "assume": lambda p: (
        f"ASSUMING {p.meta['name']} is {p.meta['values'][p.meta['place']]}: "
        f"ANSWER: {STORIES[p.meta['story']].answer(*p.meta['values'])}"
    ),
    "any number": lambda p: "ANSWER: 42",
    "every form": lambda p: (
        f"ASSUMING {p.meta['name']} 1: ANSWER: 1 QUESTION: {p.meta['name']} CANNOT: {p.meta['name']}"
    ),
}


KITCHEN_SINK = (
    "how many, what price, cost, number, amount, time, hours, speed, age, year of: seller, customer, eggs, oven, "
    "trees, bicycle, start, week, pages, day, guest, flour, dust, width, length, fence, roll, tray, red, blue, "
    "present, novel"
)
BLIND: dict[str, Callable[[Problem], str]] = {
    "the problem as a question": lambda p: whole_text(p).replace("CANNOT", "QUESTION", 1),
    "the problem as a reason": whole_text,
    "the numbers of the problem": lambda p: f"CANNOT: {' '.join(re.findall('[0-9]+', whole_text(p)))}",
    "everything": lambda p: f"QUESTION: {KITCHEN_SINK}",
    "everything, at length": lambda p: f"QUESTION: {KITCHEN_SINK} " * 3,
    "every quantity of the story": lambda p: (
        f"QUESTION: {', '.join(quantity.name for quantity in STORIES[p.meta['story']].quantities)}"
    ),
    "all that no text tells": lambda p: (
        f"CANNOT: {', '.join(beyond.name for story in STORIES.values() for beyond in story.beyond[:1])}, "
        f"{', '.join(beyond.name.split()[-1] for story in STORIES.values() for beyond in story.beyond[1:])}"
    ),
}


@pytest.mark.parametrize("policy", BLIND.values(), ids=BLIND)
def test_naming_everything_names_nothing(policy: Callable[[Problem], str]):
    problems = [p for p in TASK.problems("test", 600) if p.meta["variant"] != "complete"]
    solved = sum(TASK.judge(problem, said(policy(problem))).outcome == "solved" for problem in problems)
    # a list of words happens to name one thing and one other here and there: it may, as one other may be named
    assert solved <= (0.15 if policy is BLIND["everything"] else 0.05) * len(problems)


@pytest.mark.parametrize(
    "text",
    [
        "CANNOT: The minutes in all cannot be told, as nothing says how long a lesson lasts.",
        "QUESTION: The course has some lessons a week, but how many minutes does one of them last?",
        "CANNOT: the length of each lesson is missing, so the number of minutes cannot be worked out.",
    ],
)
def test_a_reason_may_say_what_it_hinders(text: str):
    assert judged(LESSON, text)[0] == "solved"


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_a_policy_without_judgement_gets_half_at_most(policy: Callable[[Problem], str]):
    problems = TASK.problems("test", 600)
    solved = sum(TASK.judge(problem, said(policy(problem))).outcome == "solved" for problem in problems)
    assert solved <= 0.5 * len(problems)


def test_twins_follow_one_another_and_differ_in_what_they_say():
    problems = TASK.problems("train", 400, 1)
    variants = Counter(p.meta["variant"] for p in problems)
    assert variants["complete"] == 200
    assert all(variants[variant] > 40 for variant in VARIANTS)
    assert {p.meta["story"] for p in problems} == set(STORIES)
    for one, two in zip(problems[::2], problems[1::2], strict=True):
        assert one.meta["pair"] == two.meta["pair"]
        assert "complete" in (one.meta["variant"], two.meta["variant"])
        assert one.messages != two.messages


@settings(deadline=None, max_examples=200)
@given(st.integers(0, 10**9), st.sampled_from(sorted(STORIES)), st.sampled_from(VARIANTS), st.integers(0, 3))
def test_an_incomplete_text_lacks_just_what_it_should(seed: int, story: str, variant: str, asides: int):
    open_, complete = twins(Random(seed), story, variant, asides)
    values, place = complete.meta["values"], complete.meta["place"]
    numbers = Counter(map(int, re.findall(r"\d+", complete.text)))
    assert not Counter(values) - numbers  # the complete text tells every value
    lost, extra = numbers - Counter(map(int, re.findall(r"\d+", open_.text))), set()
    match variant:
        case "underspecified":
            assert lost == Counter([values[place]])
        case "contradictory":
            extra = set(map(int, re.findall(r"\d+", open_.text))) - set(numbers)
            assert lost == Counter([values[place]])  # said once instead of twice
            assert extra <= {open_.meta["stated"][1]}
        case _:
            assert not lost
    answer = STORIES[story].answer
    assert all(answer(*values[:i], values[i] + 1, *values[i + 1 :]) != answer(*values) for i in range(len(values)))
    assert int(complete.answer) > 0
    assert "{" not in open_.text + complete.text + open_.meta["name"] + "".join(open_.meta["cues"])


def test_draws_are_repeatable_and_grow_at_the_end():
    few, many = TASK.problems("test", 7, 1), TASK.problems("test", 20, 1)
    assert many[:7] == few
    assert len(few) == 7
    assert few != TASK.problems("test", 7, 2)
    assert len({p.id for p in many}) == 20
    assert TASK.problems("test", 0) == []
    train = {p.messages for p in TASK.problems("train", 2000, 1)}
    assert not train & {p.messages for p in many}


def test_problems_are_the_same_in_every_process():
    """Of both generated families: nothing in them may depend on the order of a set, which Python salts anew."""
    code = (
        "from hashlib import sha256\nfrom mull.tasks.ambiguity import Ambiguity\n"
        "from mull.tasks.changed import Changed\n"
        "print(sha256(repr([t.problems('train', 50, 3) for t in (Ambiguity(), Changed())]).encode()).hexdigest())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": salt}, capture_output=True, check=True
        ).stdout
        for salt in ("1", "2")
    }
    assert len(seen) == 1


def test_a_rollout_from_disk_is_graded_as_before():
    for problem in TASK.problems("test", 8):
        rollout = Rollout(problem, said(TASK.gold(problem)), 1.0, "solved")
        again = Rollout.from_json(rollout.to_json())
        assert TASK.judge(again.problem, again.completion) == TASK.judge(problem, rollout.completion)


@settings(deadline=None)
@given(
    st.text() | st.text("ASUMINGWERQTCO:* \n0123,."),
    st.sampled_from(["", "ANSWER:", "ASSUMING", "QUESTION:", "CANNOT:"]),
)
def test_no_text_breaks_it(text: str, form: str):
    for problem in (LESSON, COMPLETE):
        for whole in (form + text, f"{text}\n{form}{text}", f"ASSUMING {text} ANSWER: {text}"):
            assert TASK.judge(problem, said(whole)).outcome in ("solved", "wrong", "unparsed")


@pytest.mark.parametrize(
    "text",
    ["ASSUMING " * 120_000, "ANSWER: " + "9" * 1_000_000, "ANSWER:" * 150_000, "QUESTION: " + "tray oven " * 100_000,
     "\n" * 1_000_000, "* " * 500_000, "ASSUMING ANSWER" + " " * 1_000_000, "CANNOT: " + "tray " * 200_000],
)  # fmt: skip
def test_a_megabyte_of_anything_is_judged_in_a_second(text: str):
    problem, _ = pair("bakery", "underspecified", 1)
    start = time.process_time()
    assert TASK.judge(problem, said(text)).outcome in ("solved", "wrong", "unparsed")
    assert time.process_time() - start < 1


def test_the_last_form_counts():
    assert read("no form at all") is None
    last = read("ANSWER: 1\nQUESTION: a\nANSWER: 2")
    assert last is not None
    assert (last.form, last.number) == ("answer", 2)


def test_sizes_it_does_not_have():
    for size in ({"asides": 4}, {"aside": 1}, {"asides": (2, 1)}):
        with pytest.raises(UserError, match="ambiguity"):
            TASK.problems("test", 1, **size)
    with pytest.raises(UserError, match="cannot be -1"):
        TASK.problems("test", -1)


def test_it_says_why_and_has_solutions():
    assert isinstance(TASK, Examining)
    assert isinstance(TASK, Golden)
