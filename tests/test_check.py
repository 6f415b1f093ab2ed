"""What `mull tasks check` finds: golds that are not solved, near misses, and what makes a set worth little."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mull.tasks import find
from mull.tasks.check import check, lines, near_misses
from mull.tasks.files import FileTask
from mull.types import UserError


def write(folder: Path, *rows: dict[str, Any]) -> FileTask:
    (folder / "my.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileTask(str(folder / "my.jsonl"))


def test_a_good_file_has_nothing_said_against_it(tmp_path):
    rows = [{"question": f"{i} + {i}?", "answer": 2 * i, "kind": "sum"} for i in range(1, 41)]
    checked = check(write(tmp_path, *rows))
    assert (checked.n, checked.graded, checked.solved, checked.failed, checked.faults) == (40, 40, 40, [], [])
    assert checked.columns == {"prompt": "question", "answer": "answer", "others": ("kind",)}
    assert (checked.grader, checked.why) == ("number", "all 40 golds can be read as numbers")
    assert checked.warnings == []
    assert checked.examples[0] == {"prompt": "1 + 1?", "gold": "2"}
    by_kind = {miss.kind: miss for miss in checked.near}
    for kind in (
        "one more", "other sign", "ten times as much", "no answer", "unsure", "two answers", "another's gold", "denied",
        "inside a larger expression", "with a multiplier",
    ):  # fmt: skip
        assert by_kind[kind].accepted == 0
    for kind in ("in a box", "behind words", "a unit behind", "with a full stop"):
        assert by_kind[kind].accepted == by_kind[kind].of == 25
    assert json.loads(json.dumps(checked.to_dict()))["solved"] == 40
    assert all("\n" not in line for line in lines(checked))


def test_what_makes_a_file_worth_little_is_said(tmp_path):
    checked = check(write(
        tmp_path, {"prompt": "Is it so?", "answer": "yes"}, {"prompt": "is it so", "answer": "no"},
        {"prompt": "Paris or London, which lies on the Seine?", "answer": "Paris"},
        {"prompt": "Write.", "answer": "x" * 300}, {"prompt": "Really?", "answer": "yes"},
        {"prompt": "And now?", "answer": "Yes."}, {"prompt": "", "answer": "no"},
        {"prompt": "?", "answer": "..."}, {"prompt": "?"},
    ))  # fmt: skip
    said = "\n".join(lines(checked))
    for words in (
        "It has 6 problems; under 30", "1 prompts are asked more than once, with other golds, e.g. id 1, 2",
        "Always answering 'yes' solves 50% of it", "1 of 6: the problem has its own gold in the prompt (id 3)",
        "a gold of more than 200 letters that must be met exactly (id 4)", "line 7: its prompt is empty",
        "line 8: the gold '...' has no letters or digits to compare", "line 9: its answer is missing",
    ):  # fmt: skip
        assert words in said, said
    assert len(checked.faults) == 3


def test_a_grader_that_accepts_anything_is_found(tmp_path):
    (tmp_path / "my.py").write_text(
        "def problems(): return [{'prompt': str(i), 'answer': str(i)} for i in range(40)]\n"
        "def grade(problem, answer): return 1 if problem['answer'] in answer else 0\n"
    )
    checked = check(find(str(tmp_path / "my.py")))
    assert checked.grader == "its own"
    assert checked.solved == 40
    for kind in ("two answers", "denied", "inside a larger expression", "with a multiplier"):
        assert any(f"'{kind}' is accepted for 2" in warning for warning in checked.warnings)
    assert any("'ten times as much' is accepted" in warning for warning in checked.warnings)


def test_golds_that_are_not_solved_are_listed(tmp_path):
    (tmp_path / "my.py").write_text(
        "def problems(): return [{'prompt': str(i), 'answer': str(i)} for i in range(3)]\n"
        "def grade(problem, answer): return {'0': True, '1': False}[answer]\n"
    )
    checked = check(find(str(tmp_path / "my.py")))
    assert checked.solved == 1
    assert [(bad.id, bad.outcome) for bad in checked.failed] == [("2", "wrong"), ("3", "infrastructure")]
    assert "KeyError" in checked.failed[1].words


def test_expressions_have_no_gold_to_grade(tmp_path):
    checked = check(write(tmp_path, *({"prompt": f"{i}?", "answer": f"^{i}+$", "grader": "regex"} for i in range(3))))
    assert (checked.graded, checked.grader) == (0, "regex")
    assert "3 of 3 have no gold that could be graded." in checked.warnings


def test_a_file_of_several_graders(tmp_path):
    checked = check(write(
        tmp_path, {"prompt": "a", "answer": "1"}, {"prompt": "b", "answer": "2"},
        {"prompt": "c", "answer": "blue", "grader": "contains"},
    ))  # fmt: skip
    assert checked.grader == "number (2), contains (1)"
    assert checked.solved == 3


@pytest.mark.parametrize("name", ["chain_sum", "gcd"])
def test_built_in_tasks_can_be_checked(name):
    checked = check(find(name))
    assert checked.solved == checked.graded > 100
    known = ("'denied'", "'inside a larger expression'", "'with a multiplier'")  # their grader takes the only number
    found = [warning for warning in checked.warnings if "is accepted for" in warning and "none" not in warning]
    assert all(warning.startswith(known) for warning in found)


def test_a_file_without_a_prompt_is_refused(tmp_path):
    with pytest.raises(UserError, match="no column for the prompt"):
        check(write(tmp_path, {"a": 1}))


def test_near_misses_are_never_the_gold():
    for gold in ("18", "0", "-3", "1/2", "Paris", "50%", "{}"):
        made = near_misses(gold, ["7", "London"])
        assert all(text != gold for _, meant, text in made if meant == "wrong")
        assert len({kind for kind, _, _ in made}) == len(made)
