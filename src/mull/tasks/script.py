"""Bring your own grader: a Python file is a task. `mull eval MODEL --task my.py`.

The file has `grade(problem, answer)`, and either `problems()`, which returns a list of dicts, or `DATA = "my.jsonl"`,
a file beside it; the dicts, or the rows, are as a data file's (columns.py), but need no gold answer. `problem` is such
a dict as it was given, `answer` the model's answer without its thinking. What `grade` returns is True or False, or a
share of 1, or that and a sentence that says why: 1 is solved.

It is the user's own code and is trusted: this is no sandbox. It runs in a process of its own (apart.py), so that a
hang or a crash does not take an evaluation of hours along. A grade may take CPU seconds of processor time and WALL
seconds in all; more is a `timeout`. What it raises is `infrastructure`: it says nothing about the model.

Requests: {"file": path} for the problems, {"file": path, "problem": dict, "answer": text} for a grade, [score, words].
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from mull.tasks.apart import Apart, StoppedError, attend, limit
from mull.tasks.base import Split, Verdict, unfinished
from mull.tasks.columns import Understood, understand
from mull.tasks.files import GRADING, problems_of
from mull.tasks.tables import SUFFIXES, read, rows_of
from mull.types import Completion, Outcome, Problem, UserError

CPU = 30.0  # seconds
WALL = 120.0


class ScriptTask:
    """The task of one Python file. Its name is the path as it was given."""

    def __init__(self, path: str) -> None:
        self.name = path
        self.about = f"your own grader, from {path}"
        self._apart = Apart("mull.tasks.script", "mull", "", passed_on=tuple(os.environ))

    def understood(self, **given: Any) -> Understood:
        """Raises UserError for a file that does not run or has no problems, with the line."""
        if not Path(self.name).is_file():
            raise UserError(f"There is no file {self.name}.")
        try:
            data, *dicts = self._apart.ask({"file": str(Path(self.name).resolve())})
        except StoppedError as stop:
            why = f"took more than {CPU:g} s of processor time or {WALL:g} s in all" if stop.timeout else "ended Python"
            raise UserError(f"{self.name}: loading it and making its problems {why}.") from None
        rows = read(Path(data)) if data else rows_of(dicts, self.name)
        if not rows:
            raise UserError(f"{self.name}: its problems() returns none.")
        return understand(rows, self.name, given, graded=False)

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        return problems_of(self.name, self.understood(**size), split, n, seed)

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        row = problem.meta.get(GRADING, {}).get("row", {})
        request = {"file": str(Path(self.name).resolve()), "problem": row, "answer": completion.text}
        try:
            [(score, words)] = self._apart.ask(request)
        except StoppedError as stop:
            if stop.timeout:
                return Verdict(0.0, "timeout", {"grade": f"took more than {CPU:g} s of processor time, or {WALL:g} s"})
            return Verdict(0.0, "infrastructure", {"grade": "your grade() ended Python"})
        except UserError as error:
            return Verdict(0.0, "infrastructure", {"grade": str(error)})
        return Verdict(score, "solved" if score >= 1.0 else "wrong", {"grade": words} if words else {})

    def gold(self, problem: Problem) -> str:
        """The row's answer, where it has one."""
        return problem.answer


# the other side


@cache
def load(path: str) -> ModuleType:
    """Raises UserError for a file that does not run or has no grade()."""
    sys.path.insert(0, str(Path(path).parent))
    spec = importlib.util.spec_from_file_location("mull_own_task", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    if not callable(getattr(module, "grade", None)):
        raise UserError(f"{path} has no function grade(problem, answer).")
    if not callable(getattr(module, "problems", None)) and not isinstance(getattr(module, "DATA", None), str):
        raise UserError(f'{path} has neither a function problems() nor DATA = "FILE" with the rows beside it.')
    return module


def problems(module: ModuleType, path: str) -> Iterator[Any]:
    """The path of the data, or None, and then the dicts."""
    if isinstance(data := getattr(module, "DATA", None), str) and not callable(getattr(module, "problems", None)):
        beside = Path(path).parent / data
        if beside.suffix.lower() not in SUFFIXES:
            raise UserError(f"{path}: DATA is {data!r}; it should end in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}.")
        yield str(beside)
        return
    made = module.problems()
    if not isinstance(made, list) or not all(isinstance(one, dict) for one in made):
        raise UserError(f"{path}: problems() should return a list of dicts, not {_kind(made)}.")
    yield None
    for number, one in enumerate(made, 1):
        try:
            json.dumps(one, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise UserError(f"{path}, problem {number}: it cannot be written as JSON ({error}).") from None
        yield one


def score(module: ModuleType, path: str, problem: dict[str, Any], answer: str) -> tuple[float, str]:
    found = module.grade(problem, answer)
    value, words = found if isinstance(found, tuple) and len(found) == 2 else (found, "")
    if isinstance(value, bool | int | float) and math.isfinite(value) and isinstance(words, str):
        return float(value), words[:2000]
    raise UserError(f"{path}: grade() should return True, False, a number, or (number, text), not {_kind(found)}.")


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"


def replies_to(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    path = request["file"]
    try:
        with limit(WALL), _processor(CPU):
            module = load(path)
            items = [score(module, path, request["problem"], request["answer"])] if "problem" in request else [
                *problems(module, path)
            ]  # fmt: skip
    except UserError as error:
        yield {"error": str(error)}
    except BaseException as error:  # whatever the user's code may raise, SystemExit included
        yield {"error": _told(error, path)}
    else:
        for item in items:
            yield {"item": item}
        yield {"end": True}


def _told(error: BaseException, path: str) -> str:
    """An exception with the last line of the user's file that it came through."""
    if isinstance(error, SyntaxError) and error.filename == path:
        line = error.lineno
    else:
        frames = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = frames[-1] if frames else None
    said = str(error).strip().splitlines()
    words = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
    return f"{path}{f', line {line}' if line else ''}: {words[:500]}."


@contextlib.contextmanager
def _processor(seconds: float) -> Iterator[None]:
    """Ends this process if the block takes longer than so many seconds of processor time."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


__all__ = ["ScriptTask"]

if __name__ == "__main__":
    attend(lambda: None, replies_to)
