"""Mathematics: AIME 2024, AMC 2023, MATH-500, GSM8K and SVAMP, each answer graded by two verifiers.

Ours compares exactly (exact.py); math-verify finds, reads and compares in its own way (mathverify.py). An answer is
solved where both say so, and wrong where neither does. Where one of them says equal and the other does not, the answer
has `disagreed`: it counts as unsolved, and a person should look at it. What neither finds a result in is `unparsed`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mull.tasks.base import Split, Verdict, first_of, unfinished
from mull.tasks.data import names_of, rows
from mull.tasks.exact import compare
from mull.tasks.mathverify import MathVerify
from mull.tasks.results import result
from mull.types import Completion, Message, Outcome, Problem, UserError

ASKED = "Put the final answer within \\boxed{}."
Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Published:
    """A set: how a row of its file is read, and by which split it is asked for."""

    name: str
    about: str
    question: Callable[[Row], str]
    answer: Callable[[Row], str]
    meta: Mapping[str, str] = field(default_factory=dict)  # what is kept of a row: our name for it -> its column
    splits: Mapping[str, str] = field(default_factory=dict)  # split -> its name in data.SOURCES
    worked: str = ""  # the column with a solution that states the answer as a model should; rows known by number
    worded: bool = False  # word problems: the last number is an answer, and $ is money


def number(value: Any) -> str:
    """A gold answer that is kept as a number: 27.0 is 27."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)


SETS: tuple[Published, ...] = (
    Published(
        "aime24", "AIME 2024: 30 contest problems whose answers are whole numbers up to 999",
        lambda row: row["problem"], lambda row: number(row["answer"]), {"source": "url"}, {"test": "aime24"},
    ),
    Published(
        "amc23", "AMC 12 2023: 40 contest problems whose answers are numbers",
        lambda row: row["problem"], lambda row: number(row["answer"]), {"source": "url"}, {"test": "amc23"},
    ),
    Published(
        "math500", "MATH-500: competition problems of seven subjects and five levels (Lightman et al. 2023)",
        lambda row: row["problem"], lambda row: row["answer"], {"level": "level", "subject": "subject"},
        {"test": "math500"},
    ),
    Published(
        "gsm8k", "GSM8K: word problems of two to eight steps (Cobbe et al. 2021)",
        lambda row: row["question"], lambda row: row["answer"].rpartition("####")[2].strip(), {},
        {"test": "gsm8k", "train": "gsm8k_train"}, "answer", True,
    ),
    Published(
        "svamp", "SVAMP: word problems of one step with misleading numbers (Patel et al. 2021)",
        lambda row: f"{row['Body'].strip().rstrip('.')}. {row['Question'].strip()}", lambda row: number(row["Answer"]),
        {"subject": "Type"}, {"test": "svamp"}, "", True,
    ),
)  # fmt: skip


class Mathematics:
    """A published set as a Task. `second` is a handle that several may share."""

    def __init__(self, published: Published, second: MathVerify) -> None:
        self.name = published.name
        self.about = published.about
        self._set = published
        self._second = second

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        """n of the set, in an order that the seed decides.

        Raises UserError for a split or size that the set has not, and where its file or math-verify is missing.
        """
        splits = self._set.splits
        if split not in splits:
            have = " and ".join(f'"{name}"' for name in splits)
            raise UserError(f'{self.name} is a published set: it has the split {have}, and no "{split}".')
        if size:
            raise UserError(
                f"{self.name} is a published set: its problems have no sizes to choose ({', '.join(size)})."
            )
        if n < 0:
            raise UserError(f"{self.name}: a number of problems cannot be {n}.")
        self._second.ready()
        source = splits[split]
        pairs = zip(names_of(source), rows(source), strict=True)
        return first_of([self._problem(name, row, split) for name, row in pairs], n, seed)

    def _problem(self, name: str, row: Row, split: Split) -> Problem:
        kept = {ours: row[theirs] for ours, theirs in self._set.meta.items() if theirs in row}
        question = f"{self._set.question(row).strip()}\n{ASKED}"
        return Problem(self.name, name, (Message("user", question),), self._set.answer(row), {"split": split} | kept)

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        """Both verifiers' verdict. Never raises for anything a model may write."""
        if cut := unfinished(completion):
            return Verdict(0.0, cut)
        return self.compare(problem.answer, completion.text)

    def compare(self, gold: str, text: str) -> Verdict:
        found = result(text, numbers=self._set.worded)
        first = None if found is None else compare(gold, found)
        second, said = self._second.compare(gold, text, self._set.worded)
        words = {"exact": "found nothing" if first is None else first.words, "math-verify": said}
        equal = first is not None and first.equal is True
        outcome: Outcome
        if equal and second:
            outcome = "solved"
        elif equal or second:
            outcome = "disagreed"
        else:
            outcome = "unparsed" if first is None and second is None else "wrong"
        return Verdict(float(outcome == "solved"), outcome, words)

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        verdict = self.judge(problem, completion)
        return verdict.reward, verdict.outcome

    def gold(self, problem: Problem) -> str:
        """The worked solution where the set has one that ends in its answer, else the answer in a box."""
        if not self._set.worked:
            return f"\\boxed{{{problem.answer}}}"
        return rows(self._set.splits[problem.meta["split"]])[int(problem.id)][self._set.worked]


def mathematics() -> dict[str, Mathematics]:
    """All sets by task name, sharing one process for math-verify."""
    second = MathVerify()
    return {published.name: Mathematics(published, second) for published in SETS}


__all__ = ["ASKED", "SETS", "Mathematics", "Published", "mathematics"]
