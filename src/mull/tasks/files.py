"""Bring your own: a file of prompts and answers is a task. `mull eval MODEL --task my.jsonl`.

Each row is a problem: a prompt (or a conversation), a gold answer or several, and whatever else it has, which is kept
in `meta` for slicing. What the columns are called, how answers are graded and why is decided from all rows at once
(columns.py); `mull tasks check` shows it. A problem carries what its grading needs, so rollouts read from disk grade
as they did, whatever became of the file.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from mull.tasks import graders, patterns
from mull.tasks.base import Split, Verdict, first_of, unfinished
from mull.tasks.columns import Entry, Understood, understand
from mull.tasks.mathematics import Mathematics, Published
from mull.tasks.mathverify import MathVerify
from mull.tasks.results import result
from mull.tasks.tables import SUFFIXES, read
from mull.types import Completion, Outcome, Problem, UserError

GRADING = "_grading"  # in a problem's meta: what its grading needs
OURS = (GRADING, "turns", "of")  # names in meta that say something to others


def problem_of(task: str, entry: Entry, grader: str) -> Problem:
    grading: dict[str, Any] = {"where": entry.where}
    if name := entry.grader or grader:
        grading |= {"grader": name, "golds": list(entry.golds)}
    else:  # a program grades, and is shown the row
        grading["row"] = entry.cells
    meta = {f"column {key}" if key in OURS else key: value for key, value in entry.others.items()}
    if entry.choices:
        grading["choices"] = list(entry.choices)
    if entry.turns:
        meta["turns"] = list(entry.turns)
    return Problem(task, entry.id, entry.messages, entry.golds[0] if entry.golds else "", meta | {GRADING: grading})


def problems_of(task: str, found: Understood, split: Split, n: int, seed: int) -> list[Problem]:
    """n of the problems, in the order of the seed. All of a file is held out, "test" and "validation" alike.

    Raises UserError for the first fault, and for another split.
    """
    if split not in ("test", "validation"):
        raise UserError(f'{task}: a file of your own is all test; it has no split "{split}".')
    if n < 0:
        raise UserError(f"{task}: a number of problems cannot be {n}.")
    if found.faults:
        more = f" (And {len(found.faults) - 1} more: `mull tasks check {task}` lists them.)"
        raise UserError(found.faults[0] + (more if len(found.faults) > 1 else ""))
    return first_of([problem_of(task, entry, found.grader) for entry in found.entries], n, seed)


@cache
def _mathematics() -> Mathematics:
    """Both verifiers of mathematics, for golds that are no plain numbers."""
    return Mathematics(Published("own", "", str, str), MathVerify())


def _stated(answer: str) -> str:
    """An answer of one line that is nothing but the result, as the verifiers look for it."""
    bare = answer.strip()
    return f"\\boxed{{{bare}}}" if len(bare) < 200 and "\n" not in bare and result(bare) is None else answer


class FileTask:
    """The problems of one file. Its name is the path as it was given."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.about = f"your own problems, from {path}"

    def understood(self, **given: Any) -> Understood:
        """Raises UserError for a file that cannot be read as a table of prompts and answers."""
        return understand(read(Path(self.name)), self.name, given)

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        """`size` names columns, or the grader. Raises UserError for the first row that cannot be graded."""
        found = self.understood(**size)
        if any((entry.grader or found.grader) == "math" for entry in found.entries):
            MathVerify().ready()
        return problems_of(self.name, found, split, n, seed)

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        """By the problem's own grader, as its `meta` has it."""
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        grading, answer = problem.meta.get(GRADING, {}), completion.text.rpartition("</think>")[2]
        name, golds = grading.get("grader", "text"), grading.get("golds", [problem.answer])
        if answer.lstrip().startswith("<think>"):
            return Verdict(0.0, "unparsed", {name: "its thinking has no end"})
        if name == "regex":
            return patterns.grade(golds, answer)
        if name == "math":
            found = [_mathematics().compare(gold, _stated(answer)) for gold in golds]
            return next((one for one in found if one.outcome == "solved"), found[0])
        found = graders.grade(name, golds, answer)
        if found.outcome == "unparsed" and (choices := grading.get("choices")):  # words of one instead of its letter
            told = [
                letter for letter, choice in zip(ascii_uppercase, choices, strict=False)
                if graders.grade("text", [choice], answer).outcome == "solved"
            ]  # fmt: skip
            return graders.grade(name, golds, told[0]) if len(told) == 1 else found
        return found

    def gold(self, problem: Problem) -> str:
        """The first of its golds; "" for an expression that does not match its own text: none can be made up."""
        gold, grading = problem.answer, problem.meta.get(GRADING, {})
        return "" if grading.get("grader") == "regex" and not re.fullmatch(r"[\w ,'-]*", gold) else gold


__all__ = ["GRADING", "SUFFIXES", "FileTask", "problem_of", "problems_of"]
