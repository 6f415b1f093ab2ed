"""What a task is worth before a model sees it: `mull tasks check my.jsonl`.

Its golds are graded, as a model's answers would be, and so are near misses: answers that are nearly right, or right and
said in another way. What comes out is data; who calls prints it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

from mull.tasks.base import Golden, Task, verdict
from mull.tasks.columns import Understood, listed
from mull.tasks.files import GRADING, FileTask, problem_of
from mull.tasks.graders import normalised, value_of
from mull.tasks.script import ScriptTask
from mull.types import Completion, Problem

MOST = 1000  # problems whose golds are graded
NEAR = 25  # problems whose near misses are
CONSTANT = 0.3  # share of the golds that one answer may hit
FEW = 30  # problems, under which an interval says little
LONG = 200  # letters of a gold that must be met exactly
SHOWN = 80

Meant = Literal["right", "wrong", "either"]


@dataclass(frozen=True, slots=True)
class Near:
    """One kind of near miss: how many of the golds' were accepted, and one of them."""

    kind: str
    meant: Meant
    example: str
    accepted: int
    of: int


@dataclass(frozen=True, slots=True)
class Failed:
    """A gold that was not graded as solved."""

    id: str
    gold: str
    outcome: str
    words: str


@dataclass(frozen=True, slots=True)
class Checked:
    task: str
    n: int  # problems that can be asked
    columns: dict[str, Any]  # what was understood of a file; {} of another task
    grader: str
    why: str
    examples: list[dict[str, str]]  # prompt and gold of two problems
    graded: int  # golds
    solved: int  # of them
    failed: list[Failed]
    near: list[Near]
    faults: list[str]  # rows that cannot be asked
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check(task: Task, split: Any = "test", **size: Any) -> Checked:
    """Raises UserError where the task has no problems at all."""
    found = task.understood(**size) if isinstance(task, FileTask | ScriptTask) else None
    if found:
        problems = [problem_of(task.name, entry, found.grader) for entry in found.entries]
    else:
        problems = task.problems(split, MOST, **size)
    golds = [(problem, gold) for problem in problems[:MOST] if (gold := _gold(task, problem))]
    with ThreadPoolExecutor(max_workers=4) as pool:  # what takes time runs in other processes
        failed = [bad for bad in pool.map(lambda pair: _failed(task, *pair), golds) if bad]
    near = _near(task, [problem for problem, _ in golds])
    return Checked(
        task.name, len(problems), _columns(found), _graders(problems), found.why if found else "",
        [_example(problem) for problem in problems[:2]], len(golds), len(golds) - len(failed), failed, near,
        list(found.faults) if found else [], [*_warnings(problems, len(golds), near)],
    )  # fmt: skip


def _graders(problems: Sequence[Problem]) -> str:
    names = Counter(problem.meta.get(GRADING, {}).get("grader", "its own") for problem in problems).most_common()
    return ", ".join(name if len(names) == 1 else f"{name} ({count})" for name, count in names)


def _columns(found: Understood | None) -> dict[str, Any]:
    return {name: column for name, column in asdict(found.columns).items() if column} if found else {}


def _gold(task: Task, problem: Problem) -> str:
    return task.gold(problem) if isinstance(task, Golden) else problem.answer


def _example(problem: Problem) -> dict[str, str]:
    return {"prompt": _short(problem.messages[-1].content, 300), "gold": _short(problem.answer, 100)}


def _short(text: str, most: int = SHOWN) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _said(text: str) -> Completion:
    return Completion(tokens=(), logprobs=(), finish="stop", text=text)


def _failed(task: Task, problem: Problem, gold: str) -> Failed | None:
    found = verdict(task, problem, _said(gold))
    if found.outcome == "solved":
        return None
    words = "; ".join(f"{name}: {word}" for name, word in found.words.items())
    return Failed(problem.id, _short(gold), found.outcome, _short(words, 200))


def _near(task: Task, problems: Sequence[Problem]) -> list[Near]:
    """Each kind of near miss that applies to the first problems, in the order in which they first do."""
    counts: dict[tuple[str, Meant], list[Any]] = {}
    with_answer = [problem for problem in problems if problem.answer][:NEAR]
    for at, problem in enumerate(with_answer):
        others = [one.answer for one in with_answer[at + 1 :] + with_answer[:at]]
        bare = "\n" not in problem.answer and problem.answer == _gold(task, problem)
        short = bare and problem.meta.get(GRADING, {}).get("grader") != "json"
        for kind, meant, text in near_misses(problem.answer, others):
            meant = "either" if meant == "right" and not short else meant
            seen = counts.setdefault((kind, meant), [_short(text), 0, 0])
            accepted = verdict(task, problem, _said(text)).outcome == "solved"
            if accepted and not seen[1]:
                seen[0] = _short(text)
            seen[1] += accepted
            seen[2] += 1
    return [Near(kind, meant, *seen) for (kind, meant), seen in counts.items()]


def near_misses(gold: str, others: Sequence[str] = ()) -> list[tuple[str, Meant, str]]:
    """(kind, whether it is meant to be right, the answer). `others` are golds of other problems."""
    made: list[tuple[str, Meant, str]] = [
        ("in a box", "right", f"\\boxed{{{gold}}}"),
        ("behind words", "right", f"Let me think it over.\n\nThe answer is {gold}"),
        ("with a full stop", "either", f"{gold}."),
        ("in other case", "either", gold.swapcase()),
        ("in a sentence", "either", f"I think that {gold} would be my choice here."),
        ("no answer", "wrong", ""),
        ("unsure", "wrong", "I am not sure."),
        ("denied", "wrong", f"It is not {gold}."),
    ]
    value = value_of(gold)
    if value is not None:
        made.append(("one more", "wrong", str(value + 1)))
        made.append(("ten times as much", "wrong", str(value * 10 if value else 10)))
        made.append(("other sign", "wrong", str(-value if value else 1)))
        root = str(value) if value.denominator == 1 else f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
        made.append(("inside a larger expression", "wrong", f"\\boxed{{\\sqrt{{{root}}} + 1}}"))  # never the value
        made.append(("with a multiplier", "wrong", f"{value if value else 1} million"))
        made.append(("a unit behind", "either", f"{gold} units"))
    other = next((one for one in others if normalised(one) != normalised(gold)), str(value + 1) if value else None)
    if other is not None:
        made.append(("another's gold", "wrong", other))
        made.append(("two answers", "wrong", f"{gold} or {other}"))
    return [(kind, meant, text) for kind, meant, text in made if kind != "in other case" or text != gold]


def _warnings(problems: Sequence[Problem], graded: int, near: Iterable[Near]) -> Iterable[str]:
    n = len(problems)
    if n < FEW:
        yield f"It has {n} problem{'' if n == 1 else 's'}; under {FEW} an interval is so wide that it says little."
    yield from _repeated(problems)
    answers = Counter(normalised(problem.answer) for problem in problems if problem.answer)
    for answer, count in answers.most_common(1):
        if n >= 5 and count > CONSTANT * n:
            yield f"Always answering {_short(answer, 40)!r} solves {count / n:.0%} of it."
    for what, found in (
        ("has its own gold in the prompt", [problem for problem in problems if _told(problem)]),
        (f"has a gold of more than {LONG} letters that must be met exactly", [
            problem for problem in problems
            if len(problem.answer) > LONG and problem.meta.get(GRADING, {}).get("grader") == "text"
        ]),
    ):  # fmt: skip
        if found:
            ids = listed(problem.id for problem in islice(found, 5)) + (", ..." if len(found) > 5 else "")
            yield f"{len(found)} of {n}: the problem {what} (id {ids})."
    if graded < min(n, MOST):
        yield f"{min(n, MOST) - graded} of {min(n, MOST)} have no gold that could be graded."
    for miss in near:
        if miss.meant == "wrong" and miss.accepted:
            yield f"{miss.kind!r} is accepted for {miss.accepted} of {miss.of}, e.g. {miss.example!r}."
        if miss.meant == "right" and not miss.accepted:
            yield f"{miss.kind!r} is accepted for none of {miss.of}, e.g. {miss.example!r}: let prompts say the form."


def _repeated(problems: Sequence[Problem]) -> Iterable[str]:
    by_text: dict[str, list[Problem]] = {}
    for problem in problems:
        by_text.setdefault("\n".join(normalised(message.content) for message in problem.messages), []).append(problem)
    same = [group for group in by_text.values() if len(group) > 1]
    apart = [group for group in same if len({problem.answer for problem in group}) > 1]
    for groups, what in ((same, "are asked more than once"), (apart, "are asked more than once, with other golds")):
        if groups:
            yield f"{len(groups)} prompts {what}, e.g. id {listed(problem.id for problem in groups[0][:3])}."


def _told(problem: Problem) -> bool:
    """Whether the prompt holds the gold; numbers and letters stand in many prompts, so only words count."""
    gold, grader = normalised(problem.answer), problem.meta.get(GRADING, {}).get("grader")
    if grader not in ("text", "contains") or len(gold) < 4 or value_of(gold) is not None:
        return False
    return f" {gold} " in f" {normalised(problem.messages[-1].content)} "


def lines(checked: Checked) -> list[str]:
    """All of it in plain lines, the gravest last."""
    said = [f"{checked.task}: {checked.n:,} problems" + ("" if checked.columns or checked.n < MOST else " looked at")]
    if checked.columns:
        said.append("columns: " + ", ".join(f"{name} = {_listed(value)}" for name, value in checked.columns.items()))
    said.append(f"grader: {checked.grader}" + (f", as {checked.why}" if checked.why else ""))
    said += [f"example: {one['prompt']}  ->  {one['gold'] or '(no gold)'}" for one in checked.examples]
    said.append(f"golds graded as solved: {checked.solved:,} of {checked.graded:,}")
    said += [f"  not solved: id {bad.id}, {bad.outcome} ({bad.words}): {bad.gold}" for bad in checked.failed[:10]]
    for miss in checked.near:
        should = {"right": "should be accepted", "wrong": "should be refused", "either": ""}[miss.meant]
        said.append(f"  {miss.kind}: {miss.accepted} of {miss.of} accepted {should and f'({should}) '}{miss.example!r}")
    said += [f"warning: {warning}" for warning in checked.warnings]
    return said + [f"cannot be asked: {fault}" for fault in checked.faults[:20]] + (
        [f"... and {len(checked.faults) - 20:,} more rows that cannot be asked"] if len(checked.faults) > 20 else []
    )  # fmt: skip


def _listed(value: Any) -> str:
    return value if isinstance(value, str) else listed(value)


__all__ = ["Checked", "Failed", "Near", "check", "lines", "near_misses"]
