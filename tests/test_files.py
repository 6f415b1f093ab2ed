"""A file of one's own as a task: how it is read, understood and graded, and what is said of mistakes."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks import find
from mull.tasks.base import later_turns
from mull.tasks.files import GRADING, FileTask
from mull.tasks.tables import SUFFIXES, read
from mull.types import Completion, Message, Rollout, UserError


def said(text: str, finish: Any = "stop") -> Completion:
    return Completion(tokens=(1,), logprobs=(0.0,), finish=finish, text=text)


def lines(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def sums(tmp_path):
    rows = [{"prompt": f"What is {i} + 1?", "answer": i + 1, "size": "small" if i < 5 else "large"} for i in range(10)]
    return lines(tmp_path / "sums.jsonl", *rows)


def test_a_path_is_a_task(sums):
    task = find(sums)
    assert task is find(sums)
    assert task.name == sums
    problems = task.problems("test", 100, seed=3)
    assert len(problems) == 10
    assert task.problems("validation", 4, seed=3) == problems[:4]
    assert task.problems("test", 100, seed=4) != problems
    first = next(problem for problem in problems if problem.id == "1")
    assert first.messages == (Message("user", "What is 0 + 1?"),)
    assert first.meta["size"] == "small"
    for problem in problems:
        back = Rollout.from_json(Rollout(problem, said("?"), 0.0, "wrong").to_json()).problem
        assert back == problem
        assert task.grade(back, said(task.gold(back))) == (1.0, "solved")
        assert task.grade(back, said(str(int(problem.answer) + 1))) == (0.0, "wrong")
        assert task.grade(back, said("?", "length")) == (0.0, "truncated")
        assert task.grade(back, said("no idea")) == (0.0, "unparsed")
    with pytest.raises(UserError, match='no split "train"'):
        task.problems("train", 1)


def test_thinking_is_no_answer_whether_it_ends_or_not(sums):
    problem = next(problem for problem in find(sums).problems("test", 10) if problem.answer == "5")
    for text, outcome in (
        (r"<think> maybe \boxed{5}", "unparsed"), ("<think>5</think>\n<think>It is 5", "unparsed"),
        ("<think>4</think> It is 5", "solved"), ("<think>5</think> It is 4", "wrong"), ("5</think>", "unparsed"),
    ):  # fmt: skip
        assert find(sums).judge(problem, said(text)).outcome == outcome, text


def test_a_file_that_is_gone_still_grades(sums):
    [problem] = find(sums).problems("test", 1)
    Path(sums).unlink()
    assert FileTask(sums).grade(problem, said(problem.answer)) == (1.0, "solved")


CHOSEN = {
    "number": [1, "2.5", "1,000", "3/4", "50%", "$7", "12 km"],
    "choice": ["A", "(B)", "C."],
    "text": ["Paris", "the Seine"],
    "json": [{"a": 1}, {"a": [2]}],
    "math": ["\\frac{1}{2}", "x^2+1", "3", "(1,2)", "2\\pi"],
}


@pytest.mark.parametrize("grader", CHOSEN)
def test_the_grader_is_chosen_by_all_golds(grader, tmp_path):
    rows = [{"question": "?", "target": gold} for gold in CHOSEN[grader]]
    task = FileTask(lines(tmp_path / "a.jsonl", *rows))
    assert task.understood().grader == grader
    for problem in task.problems("test", 9):
        assert task.grade(problem, said(task.gold(problem))) == (1.0, "solved"), problem.answer
    if grader not in ("text", "json"):
        mixed = FileTask(lines(tmp_path / "b.jsonl", *rows, {"question": "?", "target": "some words"}))
        assert mixed.understood().grader == "text"


def test_several_golds_any_of_which_will_do(tmp_path):
    rows = {"prompt": "?", "answers": ["Paris", "Lutetia"]}, {"prompt": "?", "answers": "Rome"}
    task = FileTask(lines(tmp_path / "a.jsonl", *rows))
    first = next(problem for problem in task.problems("test", 9) if problem.id == "1")
    assert [task.grade(first, said(text))[0] for text in ("paris", "Lutetia", "Rome")] == [1.0, 1.0, 0.0]
    assert task.judge(first, said("Rome")).words == {"text": "'Rome' is not Paris or Lutetia"}


def test_a_grader_column_and_a_grader_said(tmp_path):
    path = lines(
        tmp_path / "a.jsonl", {"id": "r", "prompt": "?", "answer": r"^\d{4}-\d\d$", "grader": "regex"},
        {"id": "c", "prompt": "?", "answer": "blue", "grader": "contains"}, {"id": "n", "prompt": "?", "answer": "7"},
        {"id": "j", "prompt": "?", "answer": [1, 2], "grader": "json"},
    )  # fmt: skip
    task = FileTask(path)
    by_id = {problem.id: problem for problem in task.problems("test", 9)}
    assert {name: problem.meta[GRADING]["grader"] for name, problem in by_id.items()} == {
        "r": "regex", "c": "contains", "n": "number", "j": "json",
    }  # fmt: skip
    for name, right, wrong in (
        ("r", "2024-05\n", "in 2024-05"), ("c", "Deep blue.", "blues"), ("n", "7.0", "8"), ("j", "[1, 2]", "[2]"),
    ):  # fmt: skip
        assert task.grade(by_id[name], said(right)) == (1.0, "solved")
        assert task.grade(by_id[name], said(wrong)) == (0.0, "wrong")
    assert task.gold(by_id["r"]) == ""
    assert task.grade(by_id["r"], said(" "))[1] == "unparsed"
    plain = FileTask(lines(tmp_path / "b.jsonl", {"prompt": "?", "answer": "7"}))
    assert plain.problems("test", 1, grader="text")[0].meta[GRADING]["grader"] == "text"


def test_an_expression_that_takes_for_ever_is_a_timeout(tmp_path):
    task = FileTask(lines(tmp_path / "a.jsonl", {"prompt": "?", "answer": "^(a+)+$", "grader": "regex"}))
    [problem] = task.problems("test", 1)
    assert task.grade(problem, said("a" * 5000 + "b")) == (0.0, "timeout")
    assert task.grade(problem, said("aaa")) == (1.0, "solved")


def test_choices_are_shown_and_graded_by_letter_or_words(tmp_path):
    rows = [
        {"question": "Capital?", "choices": ["Rome", "Paris"], "answer": 1},
        {"question": "Capital?", "choices": ["Rome", "Paris"], "answer": "paris"},
        {"question": "Capital?", "choices": ["Rome", "Paris"], "answer": "B"},
    ]
    task = FileTask(lines(tmp_path / "a.jsonl", *rows))
    for problem in task.problems("test", 9):
        assert problem.messages[-1].content == "Capital?\n\nA. Rome\nB. Paris"
        for answer in ("B", "(B) Paris", "The answer is Paris.", "Paris"):
            assert task.grade(problem, said(answer)) == (1.0, "solved"), answer
        for answer in ("A", "Rome", "Rome or Paris", "neither"):
            assert task.grade(problem, said(answer))[0] == 0.0


def test_conversations_turns_and_system_prompts(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    row = {"messages": talk, "answer": "x", "system": "Be brief.", "turns": "other"}
    task = FileTask(lines(tmp_path / "a.jsonl", row))
    [problem] = task.problems("test", 1)
    assert [(m.role, m.content) for m in problem.messages] == [
        ("system", "Be brief."), ("user", "a"), ("assistant", "b"), ("user", "c"),
    ]  # fmt: skip
    assert later_turns(problem) == ()
    [problem] = FileTask(lines(tmp_path / "b.jsonl", {"turns": ["a", "b", "c"], "answer": "x"})).problems("test", 1)
    assert problem.messages == (Message("user", "a"),)
    assert later_turns(problem) == ("b", "c")


def test_csv_json_and_tsv_say_the_same(tmp_path):
    rows = [{"id": "a", "prompt": 'Two\nlines, and "quotes"', "answer": "1"}, {"id": "b", "prompt": "é", "answer": "2"}]
    (tmp_path / "a.json").write_text(json.dumps({"data": rows}))
    table = 'id,prompt,answer\na,"Two\nlines, and ""quotes""",1\n\nb,é,2\n'
    (tmp_path / "a.csv").write_text(table, encoding="utf-8-sig")
    (tmp_path / "a.tsv").write_text('id\tprompt\tanswer\na\t"Two\nlines, and ""quotes"""\t1\nb\té\t2\n')
    lines(tmp_path / "a.jsonl", *rows)
    assert [[row.cells for row in read(tmp_path / f"a{suffix}")] for suffix in SUFFIXES] == [rows] * 4
    assert [row.where for row in read(tmp_path / "a.csv")] == [f"{tmp_path}/a.csv, line {n}" for n in (2, 5)]


def test_columns_may_be_named(tmp_path):
    path = lines(tmp_path / "a.jsonl", {"Q": "?", "A": "7", "answer": "no"})
    with pytest.raises(UserError, match=r"no column for the prompt; its columns are Q, A, answer\. Call one messages"):
        FileTask(path).problems("test", 1)
    [problem] = FileTask(path).problems("test", 1, prompt="Q", answer="A")
    assert problem.answer == "7"
    for size, what in (
        ({"prompt": "q"}, 'no column "q"'), ({"promt": "Q"}, "Did you mean 'prompt'"),
        ({"prompt": "Q", "grader": "nmber"}, "no grader 'nmber'"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=what):
            FileTask(path).problems("test", 1, **size)


MISTAKES: list[tuple[str, bytes, str]] = [
    ("jsonl", b"", "is empty"),
    ("jsonl", b" \n\n", "is empty"),
    ("jsonl", b'{"prompt": "?", "answer": 1}\n{"prompt": \n',
     r"line 2: this is no JSON \(.*at column 12\); write one JSON"),
    ("jsonl", b'["a"]\n', "line 1: this is no JSON object"),
    ("jsonl", b'{"prompt": "?", "answer": 1}\n{"prompt": " ", "answer": 1}\n', "line 2: its prompt is empty"),
    ("jsonl", b'{"prompt": "?", "answer": 1}\n{"answer": 1}\n', "line 2: its prompt is missing"),
    ("jsonl", b'{"prompt": 5, "answer": 1}\n', "line 1: its prompt is neither text nor a conversation"),
    ("jsonl", b'{"prompt": "?", "answer": 1}\n{"prompt": "?"}\n', "line 2: its answer is missing; fill it in"),
    ("jsonl", b'{"prompt": "?", "answer": []}\n', "line 1: its answer is empty"),
    ("jsonl", b'{"prompt": "?", "reply": 1}\n', "no column for the answer; its columns are prompt, reply. Call one"),
    ("jsonl", b'{"id": "a", "prompt": "?", "answer": 1}\n' * 2, "line 2: its id 'a' is also that of .*line 1"),
    ("jsonl", b'{"id": "a", "prompt": "?", "answer": 1}\n{"prompt": "?", "answer": 1}\n',
     "line 2: its id is missing"),
    ("jsonl", b'{"prompt": "?", "answer": "(", "grader": "regex"}\n',
     "line 1: the gold '\\(' is no regular expression"),
    ("jsonl", b'{"prompt": "?", "answer": "x", "grader": "number"}\n', "line 1: the gold 'x' is no number"),
    ("jsonl", b'{"prompt": "?", "answer": "x", "grader": "numbr"}\n',
     "line 1: there is no grader 'numbr'; graders are"),
    ("jsonl", b'{"prompt": "?", "prompt": "!", "answer": 1}\n', "line 1: it names 'prompt' twice"),
    ("jsonl", b'{"prompt": "?", "answer": NaN}\n', "line 1: NaN is no number in JSON"),
    ("jsonl", b'{"prompt": "?", "answer": 1e999}\n', "line 1: 1e999 is too large a number"),
    ("jsonl", b'{"prompt": "\\ud800", "answer": 1}\n', "line 1: it has half of a surrogate pair"),
    ("jsonl", b"[" * 100_000, "line 1: brackets lie too deep"),
    ("jsonl", b'{"prompt": "?", "answer": 1}\n{"prompt": "\xff", "answer": 1}\n', "line 2: this is no UTF-8 text"),
    ("jsonl", '{"prompt": "?"}'.encode("utf-16"), "is UTF-16; save it as UTF-8"),
    ("jsonl", b'{"prompt": "?", "choices": ["a"], "answer": 0}\n',
     "line 1: its choices are no list of 2 to 10 texts"),
    ("jsonl", b'{"prompt": "?", "choices": ["a", "b"], "answer": 7}\n',
     "the gold '7' is no letter from A to J, nor one of"),
    ("jsonl", b'{"messages": [{"role": "bot", "content": "a"}], "answer": 1}\n',
     "line 1: message 1 of its messages is not"),
    ("jsonl", b'{"messages": [{"role": "assistant", "content": "a"}], "answer": 1}\n',
     "the last of its messages is not"),
    ("json", b'{"prompt": "?", "answer": 1}\n', "holds one object; write a list of them"),
    ("json", b'{"prompt": "?", "answer": 1}\n{"prompt": "?", "answer": 1}\n',
     "one object a line belongs into a .jsonl file"),
    ("json", b"[]", "an empty list"),
    ("json", b'[{"prompt": "?", "answer": 1}, 5]', "entry 2: this is no JSON object"),
    ("json", b"5", "holds no list"),
    ("csv", b"prompt;answer\n?;1\n", "line 1: its columns are separated by semicolons; save it with commas"),
    ("csv", b"prompt\tanswer\n?\t1\n", "line 1: its columns are separated by tabs; save it with commas"),
    ("csv", b"prompt,answer\n", "has column names, but no rows"),
    ("csv", b"prompt,answer\n?,1\n?,1,2\n", "line 3: it has 3 fields, but line 1 names 2 columns"),
    ("csv", b"prompt,,answer\n?,1,2\n", "line 1: a column has no name"),
    ("csv", b"prompt,prompt\n?,1\n", "line 1: two columns have one name"),
    ("csv", b'prompt,answer\n"?,1\n', "line 2: this is no CSV record"),
    ("csv", b"prompt,answer\n" + b"x" * 200_000 + b",1\n", "write texts as long as that into a .jsonl file"),
    ("csv", b"prompt,answer\n?,\n", "line 2: its answer is empty"),
    ("csv", b"messages,answer\nhello,1\n", "line 2: its messages are no JSON list"),
]  # fmt: skip


@pytest.mark.parametrize(("suffix", "content", "what"), MISTAKES)
def test_a_mistake_is_one_clear_sentence(tmp_path, suffix, content, what):
    path = tmp_path / f"my.{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match=what) as error:
        find(str(path)).problems("test", 9)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600


def test_several_mistakes_are_counted(tmp_path):
    path = lines(tmp_path / "a.jsonl", *({"prompt": "", "answer": 1} for _ in range(3)), {"prompt": "?", "answer": 1})
    with pytest.raises(UserError, match=r"line 1: its prompt is empty. \(And 2 more: `mull tasks check"):
        FileTask(path).problems("test", 1)


def test_a_line_of_a_hundred_megabytes(tmp_path):
    path = tmp_path / "my.jsonl"
    with path.open("wb") as file:
        file.write(b'{"prompt": "?", "answer": 1}\n{"prompt": "')
        for _ in range(100):
            file.write(b"x" * (1 << 20))
        file.write(b'", "answer": 1}\n')
    began = time.process_time()
    with pytest.raises(UserError, match="line 2: it has more than 16 MiB; a line holds one problem"):
        read(path)
    assert time.process_time() - began < 5


def test_a_file_that_is_not_there_and_one_beside(sums):
    with pytest.raises(UserError, match=r"There is no file .*sum.jsonl. Did you mean 'sums.jsonl'\?"):
        find(sums.replace("sums", "sum")).problems("test", 1)
    folder = Path(sums).parent / "folder.jsonl"
    folder.mkdir()
    with pytest.raises(UserError, match="cannot be read: Is a directory"):
        read(folder)


def found_or_told(find: Callable[[], list[Any]], what: str) -> list[Any] | None:
    """What is found, or None where one sentence names `what`."""
    told = ""
    try:
        return find()
    except UserError as error:
        told = str(error)
    assert what in told
    assert "\n" not in told
    return None


texts = st.text(st.characters(codec="utf-8"), max_size=20)
cells = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6,
)  # fmt: skip
known = ["prompt", "answer", "id", "messages", "choices", "grader", "system", "turns", "of", GRADING]
names = st.sampled_from(known) | texts


@given(rows=st.lists(st.dictionaries(names, cells, max_size=6), max_size=4), answer=texts)
def test_any_rows_are_problems_or_one_sentence(tmp_path_factory, rows, answer):
    task = FileTask(lines(tmp_path_factory.mktemp("fuzz") / "a.jsonl", *rows))
    problems = found_or_told(lambda: task.problems("test", 9), "a.jsonl")
    if problems is None:
        return
    assert len(problems) == len(rows)
    for problem in problems:
        assert Rollout.from_json(Rollout(problem, said("?"), 0.0, "wrong").to_json()).problem == problem
        assert task.judge(problem, said(answer)).outcome in ("solved", "wrong", "unparsed", "timeout")


@given(content=st.binary(max_size=200), suffix=st.sampled_from(SUFFIXES))
def test_any_bytes_are_rows_or_one_sentence(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("fuzz") / f"a{suffix}"
    path.write_bytes(content)
    rows = found_or_told(lambda: read(path), str(path))
    assert all(isinstance(row.cells, dict) for row in rows or [])


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=5))
def test_csv_gives_back_what_was_written(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("fuzz") / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("prompt", "answer"), *rows])
    kept = [row for row in rows if any(cell.strip() for cell in row)]
    found = found_or_told(lambda: read(path), "NUL" if "\0" in str(rows) else "no rows")
    assert found is None or [tuple(row.cells.values()) for row in found] == kept
    assert found is not None or not kept or "\0" in str(rows)
