"""A Python file of one's own as a task, in a process that may hang or die."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mull.tasks import find
from mull.types import Completion, Rollout, UserError

GRADER = """
import json, os, signal, sys, time
from helper import near

def problems():
    print("this goes nowhere")
    return [{"prompt": f"What is {i} squared?", "answer": i * i, "kind": "square"} for i in range(5)]

def grade(problem, answer):
    print('{"item": [1.0, "forged"]}')
    match answer:
        case "raise":
            return 1 // 0
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            sys.exit(3)
        case "loop":
            while True:
                pass
        case "none":
            return None
        case "nan":
            return float("nan")
        case "half":
            return 0.5, "half of it"
        case "long":
            return False, "x" * 100_000
    return near(int(answer), problem["answer"])
"""


def said(text: str) -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish="stop", text=text)


def write(folder: Path, code: str, name: str = "my.py") -> str:
    (folder / name).write_text(textwrap.dedent(code))
    return str(folder / name)


@pytest.fixture
def squares(tmp_path):
    write(tmp_path, "def near(a, b): return a == b", "helper.py")
    return find(write(tmp_path, GRADER))


def test_a_grade_function_is_a_task(squares):
    problems = squares.problems("test", 9)
    assert len(problems) == 5
    assert squares.problems("test", 2) == problems[:2]
    for problem in problems:
        back = Rollout.from_json(Rollout(problem, said("?"), 0.0, "wrong").to_json()).problem
        assert squares.grade(back, said(squares.gold(back))) == (1.0, "solved")
        assert squares.grade(back, said("1000")) == (0.0, "wrong")
        assert back.meta["kind"] == "square"
    assert squares.grade(problem, Completion((1,), (0.0,), "length", "4"))[1] == "truncated"
    with pytest.raises(UserError, match="no split"):
        squares.problems("train", 1)


def test_what_goes_wrong_in_it_says_nothing_of_the_model(squares):
    [problem] = squares.problems("test", 1)
    for answer, words in (
        ("raise", "my.py, line 13: ZeroDivisionError"), ("die", "ended Python"), ("exit", "SystemExit: 3"),
        ("none", "should return True, False, a number, or (number, text), not NoneType None"), ("nan", "not float nan"),
        ("not a number", "ValueError: invalid literal"),
    ):  # fmt: skip
        verdict = squares.judge(problem, said(answer))
        assert (verdict.reward, verdict.outcome) == (0.0, "infrastructure")
        assert words in verdict.words["grade"], verdict
        assert squares.grade(problem, said(problem.answer)) == (1.0, "solved")  # it goes on
    verdict = squares.judge(problem, said("half"))
    assert (verdict.reward, verdict.outcome, verdict.words) == (0.5, "wrong", {"grade": "half of it"})
    assert len(squares.judge(problem, said("long")).words["grade"]) == 2000


@pytest.mark.slow
def test_a_hang_is_a_timeout(squares):
    [problem] = squares.problems("test", 1)
    verdict = squares.judge(problem, said("loop"))
    assert verdict.outcome == "timeout"
    assert "30 s of processor time" in verdict.words["grade"]
    assert squares.grade(problem, said(problem.answer)) == (1.0, "solved")


def test_processor_time_ends_a_request_that_takes_too_much():
    code = "from mull.tasks.script import _processor\nwith _processor(0.1):\n    while True: pass"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == -signal.SIGPROF


def test_from_several_threads(squares):
    problems = squares.problems("test", 9) * 8
    with ThreadPoolExecutor(4) as pool:
        outcomes = [*pool.map(lambda p: squares.grade(p, said(p.answer))[1], problems)]
    assert outcomes == ["solved"] * len(problems)


def test_rows_may_lie_beside_it_and_need_no_gold(tmp_path):
    (tmp_path / "my.jsonl").write_text('{"id": "a", "question": "Say something in capitals."}\n')
    task = find(write(tmp_path, 'DATA = "my.jsonl"\ndef grade(row, answer): return answer.isupper(), row["id"]'))
    [problem] = task.problems("test", 9)
    assert problem.id == "a"
    assert task.judge(problem, said("YES")).words == {"grade": "a"}
    assert task.grade(problem, said("no")) == (0.0, "wrong")
    assert task.gold(problem) == ""


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("x = 1", "has no function grade"),
        ("def grade(p, a): return True", "has neither a function problems.. nor DATA"),
        ("def grade(p, a): return True\ndef problems(): return 5", "should return a list of dicts, not int 5"),
        ("def grade(p, a): return True\ndef problems(): return []", "returns none"),
        ("def grade(p, a): return True\ndef problems(): return [{}]", "no column for the prompt"),
        ("def grade(p, a): return True\ndef problems(): return [{'prompt': ''}]", "problem 1: its prompt is empty"),
        ("def grade(p, a): return True\ndef problems(): return [{'prompt': 'a', 'x': {1}}]", "problem 1: it cannot"),
        ("def grade(p, a): return True\ndef problems():\n  return [1][2]", "line 3: IndexError"),
        ("def grade(p, a): return True\nDATA = 'my.xls'", "should end in .jsonl, .json, .csv or .tsv"),
        ("def grade(p, a): return True\nDATA = 'none.csv'", "There is no file .*none.csv"),
        ("import nowhere", "line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def grade(:", "line 1: SyntaxError"),
        ("import os; os._exit(1)", "ended Python"),
    ],
)
def test_a_mistake_is_one_clear_sentence(tmp_path, code, what):
    path = write(tmp_path, code)
    with pytest.raises(UserError, match=what) as error:
        find(path).problems("test", 9)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_script_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        find(str(tmp_path / "none.py")).problems("test", 1)


def test_it_may_use_the_environment_and_what_lies_beside_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    code = "import os\ndef problems(): return [{'prompt': os.environ['MY_KEY']}]\ndef grade(p, a): return True"
    [problem] = find(write(tmp_path, code)).problems("test", 1)
    assert problem.messages[0].content == "secret"
