"""HumanEval and MBPP: what is taken from an answer, how it is judged, and that the sets' own solutions are solved."""

import gzip
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import indent

import pytest

from mull.tasks import data
from mull.tasks.code import HumanEval, Mbpp, code_of
from mull.tasks.sandbox import Limits, kind
from mull.types import Completion, Problem, UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
HUMANEVAL = {
    "task_id": "Own/0",
    "prompt": "import math\n\ndef half(x):\n    return x / 2\n\n\ndef grow(x: int) -> int:\n    ''' More. '''\n",
    "entry_point": "grow",
    "canonical_solution": "    return math.floor(x + 1 + half(x))\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(half(8)) == 7\n",
}
MBPP = [
    {
        "task_id": 11, "text": "Write a function to add.", "code": "import math\r\ndef plus(a, b):\r\n    return a + b",
        "test_setup_code": "", "challenge_test_list": [],
        "test_list": ["assert plus(1, 2) == 3", "assert plus(2, 2) == math.sqrt(16)"],
    },
    {
        "task_id": 601, "text": "Write a function to sum a tree.",
        "test_setup_code": "root = Node(1)\nroot.left = Node(2)",
        "code": "class Node:\n    def __init__(self, v):\n        self.v, self.left = v, None\n"
        "def total(n):\n    return n.v + total(n.left) if n else 0",
        "test_list": ["assert total(root) == 3", "assert total(Node(5)) == 5"], "challenge_test_list": [],
    },
    {"task_id": 3, "text": "An example.", "code": "def f(): pass", "test_list": ["assert f() is None"]},
    {"task_id": 530, "text": "Sum.", "code": "def sum(a, b): return a + b", "test_list": ["assert sum(1, 2) == 3"]},
]  # fmt: skip


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Two sets of a few problems of our own, in the published formats."""
    monkeypatch.setenv(data.FOLDER, str(tmp_path))
    (tmp_path / "HumanEval.jsonl.gz").write_bytes(gzip.compress(json.dumps(HUMANEVAL).encode()))
    (tmp_path / "mbpp.jsonl").write_text("\n".join(map(json.dumps, MBPP)))


def said(text, **more):
    return Completion((), (), more.pop("finish", "stop"), text, **more)


@pytest.fixture
def grow(own):
    (problem,) = HumanEval().problems("test", 5)
    task = HumanEval(Limits(cpu_seconds=1))
    return lambda text, **more: task.judge(problem, said(text, **more))


# ---- the problems


def test_the_splits_of_mbpp_are_the_papers(own):
    dealt = {split: [p.id for p in Mbpp().problems(split, 10)] for split in ("train", "validation", "test")}
    assert dealt == {"train": ["mbpp/601"], "validation": ["mbpp/530"], "test": ["mbpp/11"]}


@pytest.mark.parametrize("task", [HumanEval(), Mbpp()])
def test_a_split_or_size_that_is_not_there_is_refused(own, task):
    with pytest.raises(UserError, match='no "tset"'):
        task.problems("tset", 1)
    with pytest.raises(UserError, match="no sizes, so no length"):
        task.problems("test", 1, length=3)


def test_an_absent_set_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv(data.FOLDER, str(tmp_path))
    with pytest.raises(UserError, match=r"mbpp.jsonl"):
        Mbpp().problems("test", 1)


def test_the_prompts_say_what_is_asked(own):
    (problem,) = HumanEval().problems("test", 1)
    assert HUMANEVAL["prompt"] in problem.messages[0].content
    assert HUMANEVAL["test"] not in problem.messages[0].content
    (problem,) = Mbpp().problems("train", 1)
    for part in ("Write a function to sum a tree.", "root.left = Node(2)", "assert total(root) == 3"):
        assert part in problem.messages[0].content


@pytest.mark.parametrize(
    ("task", "split"), [(HumanEval(), "test"), *((Mbpp(), s) for s in ("test", "train", "validation"))]
)
def test_the_own_solutions_are_solved_also_of_problems_read_from_disk(own, task, split):
    for problem in task.problems(split, 10):
        again = Problem(
            **{
                **json.loads(json.dumps({s: getattr(problem, s) for s in ("task", "id", "answer", "meta")})),
                "messages": problem.messages,
            }
        )
        verdict = task.judge(again, said(task.gold(again)))
        assert (verdict.reward, verdict.outcome, verdict.words) == (1.0, "solved", {"tests": "passed"})
        assert task.grade(problem, said("```\nx = 1\n```")) == (0.0, "wrong")


# ---- outcomes


SOLUTION = "def grow(x):\n    return math.floor(x + 1 + half(x))\n"


@pytest.mark.parametrize(
    ("text", "outcome"),
    [
        (f"Here:\n```python\n{SOLUTION}```\nIt works.", "solved"),
        (f"```py\n{SOLUTION}", "solved"),
        (f"~~~~ python title=x\n{SOLUTION}~~~~", "solved"),
        (f"```python\ndef grow(x): return 0\n```\nNo:\n```python\n{SOLUTION}```\n```\nprint(grow(2))\n```", "solved"),
        (f"```bash\npip install x\n```\n```python\n{SOLUTION}```\n```json\n{{}}\n```", "solved"),
        (SOLUTION, "solved"),
        ("from __future__ import annotations\n" + SOLUTION, "solved"),
        ("    return math.floor(x + 1 + half(x))", "solved"),
        ("return math.floor(x + 1 + half(x))", "solved"),
        ("```python\n    return math.floor(x + 1 + half(x))\n```", "solved"),
        (f"```python\n{SOLUTION}\nif __name__ == '__main__':\n    print(grow(int(input())))\n```", "solved"),
        ("```python\ngrow = lambda x: x + x // 2 + 1\n```", "solved"),
        (f"1. So:\n\n   ```python\n{indent(SOLUTION, '   ')}   ```\n", "solved"),
        (f"- So:\n\n    ```python\n{indent(SOLUTION, '    ')}    ```\n", "solved"),
        ("A helper:\n```python\ndef two(x): return more(x)\n```\n```python\ndef more(x): return x + 1\n```\nThen:\n"
         "```python\ndef grow(x): return two(x) + int(half(x))\n```", "solved"),
        ("```\nfrom math import floor\n```\n```\ndef grow(x): return floor(x + 1 + half(x))\n```", "solved"),
        ("```python\nraise ValueError\n```\n```python\ndef grow(x): return int(x + 1 + half(x))\n```", "solved"),
        (f"````markdown\nThis:\n```python\n{SOLUTION}```\n````", "solved"),
        (f"Sure! Here it is:\n\n{SOLUTION}", "solved"),
        (f"Here is the code:\n\nimport math\n{SOLUTION}\nThis function adds them.\n", "solved"),
        ("```python\nfrom typing import Callable\ngrow: Callable = lambda x: x + x // 2 + 1\n```", "solved"),
        ("```python\ndef grow(x):\n    \'\'\'\n    ```\n    an example\n    ```\n    \'\'\'\n"
         "    return x + x // 2 + 1\n```", "solved"),
        (f"```python\ndef half(x): return 0\n{SOLUTION}```", "wrong"),
        ("```python\ndef half(x): return 1\ndef grow(x): return 4 if x == 2 else 0\n```", "wrong"),
        ("```python\ndef grow(x): return x\n```", "wrong"),
        ("```python\ndef grow(x): return\n  x\n```", "wrong"),
        ("```python\ndef shrink(x): return x\n```", "wrong"),
        ("```python\ndef grow(x):\n    while True: pass\n```", "timeout"),
        ("I cannot do this.", "unparsed"),
        ("", "unparsed"),
        ("  \n", "unparsed"),
        ("```python\n```", "unparsed"),
        ("\0", "unparsed"),
        ("🙂" * 1000, "unparsed"),
        ("{" * (1 << 20), "unparsed"),
        ("`" * (1 << 20), "unparsed"),
        ("```" + "a" * (1 << 20) + "`", "unparsed"),
        ("".join(f"```\na{i} = a{i + 1}\n```\n" for i in range(30_000)) + "```\ngrow = a0\n```", "wrong"),
        ("a" * (1 << 19) + " " * (1 << 19), "wrong"),
        ("```\n" * (1 << 18), "unparsed"),
        ("```python\ngrow = " + "(" * (1 << 20) + "\n```", "wrong"),
    ],
)  # fmt: skip
def test_an_answer_gets_its_outcome(grow, text, outcome):
    verdict = grow(text)
    assert (verdict.outcome, verdict.reward) == (outcome, float(outcome == "solved"))
    assert verdict.words["tests"]


def test_the_words_say_which_test_failed(grow):
    assert (
        "assertion failed in assert candidate(half(8)) == 7" in grow("```\ndef grow(x): return 4\n```").words["tests"]
    )


def test_what_is_cut_off_is_not_run_and_thinking_is_no_answer(grow):
    assert grow(SOLUTION, finish="length").outcome == "truncated"
    assert grow(SOLUTION, finish="cancelled").outcome == "infrastructure"
    assert grow("", reasoning=SOLUTION).outcome == "unparsed"


def test_the_last_block_with_the_function_is_the_code():
    text = "```python\ndef f(): 1\n```\n```\ndef f(): 2\n```\n```python\nprint(f())\n```"
    assert code_of(text, "f") == ("def f(): 2\n", True)
    assert code_of(text, "g") == ("print(f())\n", True)
    assert code_of("def f(): 3", "f") == ("def f(): 3", True)
    assert code_of("none", "f") == ("none", False)
    assert code_of("```\nr = f(1)\n```\n```\ndef f(r): r\n```", "f") == ("def f(r): r\n", True)
    assert code_of("````md\n```python\ndef f(): 1\n```\n````", "f")[1]


# ---- the published sets


def solved(task, problems):
    def one(problem):
        return task.judge(problem, said(task.gold(problem))).outcome

    kind()
    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(one, problems))
    return Counter(outcomes), [p.id for p, outcome in zip(problems, outcomes, strict=True) if outcome != "solved"]


@pytest.fixture
def shared(monkeypatch):
    if not (SHARED / "code").is_dir():
        pytest.skip(f"no {SHARED}/code")
    monkeypatch.setenv(data.FOLDER, str(SHARED))


@pytest.mark.parametrize("task", [HumanEval(), Mbpp()])
def test_twenty_published_solutions_are_solved(shared, task):
    assert solved(task, task.problems("test", 20)) == ({"solved": 20}, [])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("task", "split", "size"), [
    (HumanEval(), "test", 164), (Mbpp(), "test", 500), (Mbpp(), "validation", 90), (Mbpp(), "train", 374),
])  # fmt: skip
def test_all_published_solutions_are_solved(shared, task, split, size):
    assert solved(task, task.problems(split, 1000)) == ({"solved": size}, [])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_published_solution_is_solved_with_its_function_emptied(shared):
    """Errors the other way: an answer that returns nothing passes no test of either set, or the set is named here."""
    passed = []
    for task in (HumanEval(), Mbpp()):
        for problem in task.problems("test", 1000):
            entry = problem.meta["entry"]
            if task.grade(problem, said(f"```python\ndef {entry}(*a, **k): pass\n```"))[1] == "solved":
                passed.append(problem.id)
    assert passed == []
