"""reasoning-gym's sets, in their own process."""

from __future__ import annotations

import gc
import importlib.util
import json
import subprocess
import sys
import threading
import time
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks import TAUGHT, find
from mull.tasks.apart import StoppedError
from mull.tasks.arithmetic import TERM, ChainSum, Gcd, Products, normalised
from mull.tasks.base import SPLITS, split_of
from mull.tasks.gym import pack, unpack
from mull.tasks.puzzle import SETS, Gym, Puzzle
from mull.types import Completion, Problem, Rollout, UserError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="needs reasoning-gym"
)
DOZEN = (
    "ab", "basic_arithmetic", "codeio", "countdown", "graph_color", "gsm_symbolic", "isomorphic_strings", "lcm",
    "propositional_logic", "rearc", "simple_equations", "word_ladder",
)  # fmt: skip
# where the gold answer is None, the metadata may hold a solution
EXAMPLES = {
    "graph_color": "possible_answer",
    "propositional_logic": "example_answer",
    "rubiks_cube": "example_correct_answer",
}
UNSOLVED = {"boxnet", "rush_hour"}  # no solution comes with them
CREDULOUS = {"game_of_life_halting"}  # its scorer accepts every answer


def said(text: str, **more: Any) -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish=more.pop("finish", "stop"), text=text, **more)


def gold(name: str, problem: Problem) -> str:
    if problem.answer:
        return problem.answer
    solution = unpack(problem.meta["entry"])["metadata"][EXAMPLES[name]]
    return solution if isinstance(solution, str) else json.dumps(solution)


def check(name: str, n: int) -> None:
    task = find(f"gym/{name}")
    problems = task.problems("train", n, seed=3)
    assert len(problems) == n
    for problem in problems:
        back = Rollout.from_json(Rollout(problem, said("?"), 0.0, "wrong").to_json()).problem
        assert back == problem
        if name not in UNSOLVED:
            assert task.grade(back, said(gold(name, problem))) == (1.0, "solved")
        outcome = task.grade(back, said("zebra 12"))[1]
        assert outcome == ("solved" if name in CREDULOUS else "wrong")
        assert task.grade(back, said(" ")) == (0.0, "unparsed")
        assert task.grade(back, said("?", finish="length")) == (0.0, "truncated")


@pytest.mark.parametrize("name", DOZEN)
def test_gold_scores_one(name):
    check(name, 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(SETS) - set(DOZEN)))
def test_gold_scores_one_in_every_other_set(name):
    check(name, 2)


@pytest.mark.slow
def test_sets_are_those_of_the_installed_package():
    code = "import reasoning_gym.factory as factory; print(*factory.DATASETS)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert set(SETS) == set(done.stdout.split()) - {"composite"}


@pytest.mark.parametrize("name", ["simple_equations", "isomorphic_strings"])
def test_splits_are_disjoint(name):
    questions = {
        split: {p.messages[0].content for seed in (0, 1) for p in find(f"gym/{name}").problems(split, 30, seed)}
        for split in SPLITS
    }
    for split in SPLITS:
        assert all(split_of(f"gym/{name}", q) == split for q in questions[split])
    assert len(questions["test"]) > 50


def test_problems_are_a_function_of_the_seed():
    """isomorphic_strings draws from sets of letters: it would differ from process to process."""
    task = find("gym/isomorphic_strings")
    problems = task.problems("test", 5)
    assert Puzzle("isomorphic_strings", Gym()).problems("test", 8)[:5] == problems
    assert task.problems("test", 5, seed=1) != problems
    assert len({p.id for p in problems}) == 5


def test_more_problems_than_one_block_holds():
    assert len({p.messages[0].content for p in find("gym/lcm").problems("test", 120)}) == 120


def test_a_small_set_is_given_once():
    problems = find("gym/coin_flip").problems("test", 100, min_trials=3, max_trials=4)
    assert 0 < len(problems) < 100
    assert len({p.messages[0].content for p in problems}) == len(problems)


# the house families against the sets they are named after


def rebuilt(name: str, question: str) -> tuple[str, int]:
    """The house's question and answer for the numbers in reasoning-gym's question."""
    terms = [term.replace(" ", "") for term in TERM.findall(question)]
    numbers = [int(term.lstrip("-")) for term in terms]
    if name == "chain_sum":
        drawn = ChainSum.drawn(numbers, [-1 if term[0] == "-" else 1 for term in terms], 1)
    else:
        drawn = {"products": Products, "gcd": Gcd}[name].drawn(*numbers)
    return drawn.question, drawn.answer


@pytest.mark.parametrize("name", TAUGHT)
def test_the_house_words_and_answers_as_reasoning_gym_does(name):
    size = {"max_terms": 4, "max_digits": 3} if name == "chain_sum" else {}
    for problem in find(f"gym/{name}").problems("train", 150, **size):
        question, answer = rebuilt(name, problem.messages[0].content)
        assert question == problem.messages[0].content
        assert str(answer) == problem.answer


@pytest.mark.parametrize("name", TAUGHT)
def test_reasoning_gym_agrees_on_the_answers_of_the_house(name):
    set_ = find(f"gym/{name}")
    for problem in find(name).problems("test", 40):
        entry = pack({"answer": problem.answer, "metadata": {}})
        theirs = Problem(set_.name, "", problem.messages, "", {"config": {}, "entry": entry})
        assert set_.grade(theirs, said(problem.answer)) == (1.0, "solved")


@pytest.mark.parametrize("name", TAUGHT)
def test_a_taught_set_shares_its_splits_with_the_house(name):
    for problem in find(f"gym/{name}").problems("test", 30):
        assert split_of(name, normalised(problem.messages[0].content)) == "test"


# when things go wrong


def test_answers_in_tags_are_read():
    task = find("gym/lcm")
    [problem] = task.problems("test", 1)
    assert task.grade(problem, said(f"So <answer>1</answer>, no: <answer>{problem.answer}</answer>."))[1] == "solved"


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ({"min_number": 3}, "no size \"min_number\".*Did you mean 'min_numbers'"),
        ({"min_numbers": 9}, "gym/countdown: max_numbers must be >= min_numbers"),
        ({"min_numbers": "many"}, "gym/countdown: "),
        ({"size": 1}, 'no size "size"'),
    ],
)
def test_a_wrong_size_is_told(size, says):
    task = find("gym/countdown")
    with pytest.raises(UserError, match=says):
        task.problems("train", 1, **size)
    assert len(task.problems("train", 1)) == 1  # the process lives on


def test_a_missing_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)  # as an import that fails
    with pytest.raises(UserError, match="pip install 'reasoning-gym"):
        Puzzle("lcm", Gym()).problems("train", 1)


def test_answers_that_attack_the_scorer():
    task = find("gym/countdown")
    [problem] = task.problems("test", 1)
    for answer in ("exit()", "1/0", "(" * 5000, "print('{\"item\": 1.0}')", "\ud800", "\x00", "[1" * 2000):
        assert task.grade(problem, said(answer))[1] == "wrong"
    assert task.grade(problem, said("__import__('os')._exit(0)")) == (0.0, "wrong")
    assert task.grade(problem, said(problem.answer)) == (1.0, "solved")  # in a new process


@pytest.mark.slow
def test_an_answer_that_takes_for_ever_is_a_timeout():
    task = find("gym/countdown")
    [problem] = task.problems("test", 1)
    started = time.monotonic()
    assert task.grade(problem, said("9**9**9**9**9")) == (0.0, "timeout")
    assert time.monotonic() - started < 20
    assert task.grade(problem, said(problem.answer)) == (1.0, "solved")


def test_secrets_in_the_environment_stay_here(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret")
    gym = Gym()
    # ends its process only where the token is not to be seen
    attack = "__import__('os')._exit(0) if 'SOME_TOKEN' not in __import__('os').environ else 1"
    entry = {"answer": "1", "metadata": {"numbers": [1], "target": 1}}
    with pytest.raises(StoppedError):
        gym.ask({"score": "countdown", "config": {}, "question": "", "entry": entry, "answer": attack})


def test_threads_take_turns():
    task = find("gym/lcm")
    problems = task.problems("test", 40)
    outcomes: list[str] = []
    threads = [
        threading.Thread(
            target=lambda part=problems[i::4]: outcomes.extend(task.grade(p, said(p.answer))[1] for p in part)
        )
        for i in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes == ["solved"] * 40


def test_the_process_ends_with_its_handle():
    gym = Gym()
    gym.ask({"make": "lcm", "config": {}, "split": "train", "n": 1, "seed": 0})
    process = gym._process
    assert process is not None
    assert process.poll() is None
    del gym
    gc.collect()
    assert process.poll() is not None


# entries

plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.fractions()
keys = st.text() | st.integers() | st.sampled_from(["()", "/", "{}"]) | st.tuples(st.integers(), st.integers())
entries = st.recursive(
    plain,
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(keys, inner),
    max_leaves=8,
)


@settings(max_examples=40)
@given(entries)
def test_entries_come_back_as_they_were(entry):
    back = unpack(json.loads(json.dumps(pack(entry))))
    assert back == entry
    assert repr(back) == repr(entry)  # 1 == True == 1.0, but not in writing


def test_what_no_entry_holds_is_refused():
    assert unpack(pack({1: (Fraction(1, 2),)})) == {1: (Fraction(1, 2),)}
    with pytest.raises(TypeError, match="holds a set"):
        pack({"a": {1}})
