"""Changed instructions: what is in force decides, the old rule never does, and every problem can be solved."""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks.base import Examining, Golden, later_turns, split_of
from mull.tasks.changed import KEYWORDS, PLAIN, TOPICS, Changed, Rule, compose, in_force, obeys, wishes
from mull.types import Completion, Message, Problem, Rollout, UserError

TASK = Changed()


def said(text: str, **more: Any) -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish=more.pop("finish", "stop"), text=text, **more)


def rule(subject: str, kind: str, arguments: dict[str, Any], words: str, said: int, until: int | None = None) -> Rule:
    return {"subject": subject, "id": kind, "arguments": arguments, "words": words, "said": said, "until": until}


def of(*rules: Rule) -> Problem:
    return Problem("changed", "x", (Message("user", "Write."),), "", {"turns": ["Again."], "rules": list(rules)})


NO_COMMAS = ("commas", "punctuation:no_comma", {}, "use no commas")
COMMAS = ("commas", "keywords:frequency", {"keyword": ",", "frequency": 2, "relation": "at least"}, "use 2 commas")
SHORT = ("the length", "length_constraints:number_words", {"num_words": 5, "relation": "less than"}, "be short")


def test_the_rule_in_force_decides_and_the_old_one_is_named():
    problem = of(rule(*NO_COMMAS, 1, 2), rule(*COMMAS, 2), rule(*SHORT, 1))
    good = TASK.judge(problem, said("a, b, c"))
    assert (good.reward, good.outcome) == (1.0, "solved")
    assert good.words == {
        "turn 1: use no commas": "no longer in force, not followed",
        "turn 2: use 2 commas": "in force, followed",
        "turn 1: be short": "in force, followed",
    }
    old = TASK.judge(problem, said("a b c"))
    assert (old.reward, old.outcome) == (0.5, "wrong")
    assert old.words["turn 2: use 2 commas"] == "in force, followed the old instruction"
    neither = TASK.judge(problem, said("a, b"))
    assert neither.words["turn 2: use 2 commas"].startswith("in force, not followed: 1 times")
    assert TASK.grade(problem, said("a b c")) == (0.5, "wrong")


def test_a_withdrawn_rule_binds_nobody():
    problem = of(rule(*NO_COMMAS, 1, 2), rule(*SHORT, 1))
    assert TASK.judge(problem, said("a, b")).outcome == "solved"
    verdict = TASK.judge(problem, said("a b"))
    assert verdict.outcome == "solved"
    assert verdict.words["turn 1: use no commas"] == "no longer in force, followed all the same"


def test_answers_without_an_end_or_a_text():
    problem = of(rule(*NO_COMMAS, 1))
    assert TASK.grade(problem, said("a", finish="length")) == (0.0, "truncated")
    assert TASK.grade(problem, said("a", finish="cancelled")) == (0.0, "infrastructure")
    assert TASK.grade(problem, said(" ")) == (0.0, "wrong")


SIZES = st.fixed_dictionaries({"turns": st.integers(2, 8), "constraints": st.integers(1, 8)})


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**9), SIZES)
def test_every_problem_can_be_solved_and_no_earlier_answer_solves_it(seed: int, size: dict[str, int]):
    for problem in TASK.problems("train", 5, seed, **size):
        verdict = TASK.judge(problem, said(TASK.gold(problem)))
        assert verdict.outcome == "solved", (verdict.words, TASK.gold(problem))
        rules, turns = problem.meta["rules"], later_turns(problem)
        assert len(turns) == size["turns"] - 1
        assert sum(r["said"] == 1 for r in rules) == 1 + size["constraints"]
        for turn in range(1, size["turns"]):
            old = compose(in_force(rules, turn))
            assert all(obeys(r, old)[0] for r in in_force(rules, turn))  # it was right then
            verdict = TASK.judge(problem, said(old))
            assert verdict.outcome == "wrong"
            assert "in force, followed the old instruction" in verdict.words.values()


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10**9), st.data())
def test_forms_of_a_subject_exclude_one_another(seed: int, data: st.DataObject):
    """Whatever the text: the solution to one form, mangled, never follows two."""
    subject, forms = data.draw(st.sampled_from(sorted(wishes(Random(seed)).items())))
    rules = [rule(subject, *form, said=1) for form in forms]
    text = compose([data.draw(st.sampled_from(rules))])
    for _ in range(3):
        cut = data.draw(st.integers(0, len(text)))
        text = (
            text[cut:]
            + data.draw(st.sampled_from([",", '"', "[a]", "\n- a", "\n***\n", "<<a>>", " zxqj", "A", ""]))
            + text[:cut]
        )
    for a, b in combinations(rules, 2):
        assert not (obeys(a, text)[0] and obeys(b, text)[0]), (a, b, text)


def test_no_two_rules_in_force_are_about_one_subject():
    for problem in TASK.problems("train", 100, 3, turns=8):
        for turn in range(1, 9):
            subjects = [r["subject"] for r in in_force(problem.meta["rules"], turn)]
            assert len(subjects) == len(set(subjects))


def test_what_is_said_is_what_is_checked():
    """Each rule's words stand in the turn that sets it; a subject that is withdrawn is named in its turn."""
    for problem in TASK.problems("train", 100, 4, turns=5):
        turns = [problem.messages[0].content, *later_turns(problem)]
        for r in problem.meta["rules"]:
            assert r["words"] in turns[r["said"] - 1]
            replaced = any(o["subject"] == r["subject"] and o["said"] == r["until"] for o in problem.meta["rules"])
            if r["until"] is not None and not replaced:
                assert r["subject"] in turns[r["until"] - 1]


def test_all_moves_and_subjects_turn_up():
    problems = [p.meta["rules"] for p in TASK.problems("train", 300, 5)]
    subjects = {r["subject"].split(' "')[0] for rules in problems for r in rules}
    assert subjects == {"the topic", *(s.split(' "')[0] for s in wishes(Random(0)))}
    moves = set()
    for rules in problems:
        for r in rules:
            others = [o for o in rules if o["subject"] == r["subject"] and o is not r]
            if r["until"]:
                moves.add("changed" if any(o["said"] == r["until"] for o in others) else "withdrawn")
            if r["said"] > 1 and not others:
                moves.add("added")
    assert moves == {"changed", "withdrawn", "added"}


def test_draws_are_repeatable_grow_at_the_end_and_keep_to_their_split():
    few, many = TASK.problems("test", 10, 1), TASK.problems("test", 20, 1)
    assert many[:10] == few
    assert few != TASK.problems("test", 10, 2)
    for split in ("train", "validation", "test"):
        for problem in TASK.problems(split, 10, 7):
            key = "\n".join([problem.messages[0].content, *later_turns(problem)])
            assert split_of("changed", key) == split
    assert len({p.messages[0].content + str(p.meta["turns"]) for p in many}) == 20


BLAND = (
    "I'm ready to help. What would you like?",
    "Sure!",
    "I cannot help with that, I am afraid, but do feel free to ask me anything else. " * 10,
)


@pytest.mark.parametrize("text", BLAND)
def test_a_refusal_follows_no_conversation(text: str):
    """Rules that only forbid would let it pass."""
    for size in ({}, {"turns": 2, "constraints": 1}):
        for problem in TASK.problems("train", 300, 8, **size):
            assert TASK.judge(problem, said(text)).outcome == "wrong"


TOPIC_WORDS = " ".join(TOPICS.values())
CONSTANT = {
    "all topics": TOPIC_WORDS,
    "all topics and letters": f"{TOPIC_WORDS} zzz xxx qqq jjj",
    "whatever may be asked for": f"<<a>> {TOPIC_WORDS} {' '.join(KEYWORDS * 3)} zzz xxx qqq jjj [n] [n] [n], , , , , a",
    "long": TOPIC_WORDS + " the" * 100,
}


@pytest.mark.parametrize("text", CONSTANT.values(), ids=CONSTANT)
def test_no_text_without_a_look_at_the_conversation_follows_it(text: str):
    problems = TASK.problems("train", 300, 8)
    assert sum(TASK.judge(problem, said(text)).outcome == "solved" for problem in problems) <= 0.03 * len(problems)


def test_the_word_of_the_topic_is_not_enough_however_long_the_text():
    for problem in TASK.problems("train", 300, 8):
        word = problem.meta["rules"][0]["arguments"]["word"]
        for text in (word, f"{word.capitalize()}. {PLAIN} {PLAIN}"):
            assert TASK.judge(problem, said(text)).outcome == "wrong"


def test_the_first_word_may_have_a_title_before_it():
    problem = of(rule("the topic", "text:begins", {"word": "fog", "more": 2}, "begin with fog", 1))
    for text in ("Fog lies here.", "<<Of fog>>\n\n**Fog** lies here", '"<<A>> fog, old fog"', "- FOG IS OLD"):
        assert TASK.judge(problem, said(text)).outcome == "solved", text
    for text in ("The fog lies here.", "Fog lies.", "fogs lie here", "<<A>> The fog is old"):
        assert TASK.judge(problem, said(text)).outcome == "wrong", text


def test_a_rollout_from_disk_is_graded_as_before():
    problem = TASK.problems("test", 1)[0]
    rollout = Rollout(problem, said(TASK.gold(problem)), 1.0, "solved")
    again = Rollout.from_json(rollout.to_json())
    assert TASK.judge(again.problem, again.completion) == TASK.judge(problem, rollout.completion)


def test_sizes_it_does_not_have():
    for size in ({"turns": 1}, {"turns": (3, 2)}, {"constraints": 9}, {"constraint": 2}, {"turns": "many"}):
        with pytest.raises(UserError, match="changed"):
            TASK.problems("test", 1, **size)


def test_it_says_why_and_has_solutions():
    assert isinstance(TASK, Examining)
    assert isinstance(TASK, Golden)
