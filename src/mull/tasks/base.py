"""What a task is, and how its problems are dealt to train, validation and test.

A task draws problems and grades answers. Its problems come from one endless stream of candidates per seed. A candidate
goes to train (80 %), validation (10 %) or test (10 %) by a hash of its normalised text alone, so one problem can never
be in two splits, whatever the seed, the size or the machine. The price: a held-out problem costs about ten draws.

Training draws may repeat a problem, as chance has it. A validation or test draw holds each problem once; where fewer
exist than were asked for (sums of two one-digit numbers, say) the draw is shorter, so that an interval computed from
it stays honest. Redrawing repeats makes the sizes of which few problems exist rarer than in training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from random import Random
from typing import Any, Literal, Protocol, TypeVar, get_args, runtime_checkable

from mull.config import nearest
from mull.types import Completion, Message, Outcome, Problem, UserError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Range = tuple[int, int]
PATIENCE = 1000  # candidates in a row without a new problem, before we believe that there are no more

T = TypeVar("T")


class Task(Protocol):
    """Draws problems and grades answers. `about` is one line for listings."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str: ...

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        """The first n problems of `split` in the stream of `seed`; `size` overrides how large they are.

        A larger n only adds to the end. A held-out draw is shorter where no more problems of that size exist.
        Raises UserError for an unknown split or size, and where the split holds no such problem at all.
        """
        ...

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        """(reward, outcome). Never raises for anything a model may write."""
        ...


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an answer, and what each verifier said of it, by its name."""

    reward: float
    outcome: Outcome
    words: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class Examining(Protocol):
    """A task that says why: `grade` is what `judge` says without the words."""

    def judge(self, problem: Problem, completion: Completion) -> Verdict: ...


@runtime_checkable
class Golden(Protocol):
    """A task that has an answer to each of its problems which must be graded as solved."""

    def gold(self, problem: Problem) -> str: ...


@runtime_checkable
class Judged(Protocol):
    """A task whose answers only a model can judge. `needs_judge` is True."""

    name: str
    needs_judge: bool

    def requests_for_judge(self, problem: Problem, completion: Completion) -> list[tuple[Message, ...]]:
        """What to ask the judge, a conversation for each judgement; `problem.messages` hold the one that is judged."""
        ...

    def judged(self, problem: Problem, completion: Completion, said: list[str]) -> Verdict:
        """The verdict, from what the judge said to each; "" where it came to no end."""
        ...


@runtime_checkable
class Cautious(Protocol):
    """A task that has something to say to who has it graded on this machine."""

    def warning(self) -> str: ...


def verdict(task: Task, problem: Problem, completion: Completion) -> Verdict:
    """The task's verdict, with words where it has some."""
    if isinstance(task, Examining):
        return task.judge(problem, completion)
    return Verdict(*task.grade(problem, completion))


def later_turns(problem: Problem) -> tuple[str, ...]:
    """What the user says after each answer but the last: a problem of several turns has them in `meta["turns"]`.

    When it is graded, `messages` hold the whole conversation, the model's earlier answers among them, up to the last
    turn of the user; the completion is the answer to that.
    """
    return tuple(problem.meta.get("turns", ()))


def first_of(problems: Sequence[T], n: int, seed: int) -> list[T]:
    """n of a set's problems, in an order that the seed alone decides: a larger n only adds to the end."""
    order = list(range(len(problems)))
    Random(seed).shuffle(order)
    return [problems[i] for i in order[:n]]


class Worked(Task, Protocol):
    """A task that also shows how: taught families write the step-by-step chain themselves."""

    def solution(self, problem: Problem) -> Message:
        """The assistant's message: the chain as `reasoning`, the answer alone as `content`."""
        ...


def sized(
    task: str, sizes: Mapping[str, Range], given: Mapping[str, Any], limits: Mapping[str, Range] | None = None
) -> dict[str, Range]:
    """Every size of a task as an inclusive range: the given one, a pair or one number for both ends, or the usual one.

    Raises UserError for a size that the task does not have, and for a range beyond `limits` (from 1 up, if not named).
    """
    for key in given.keys() - sizes.keys():
        raise UserError(f'{task} has no size "{key}"; its sizes are {", ".join(sizes)}.{nearest(key, sizes)}')
    ranges = {}
    for key, usual in sizes.items():
        least, most = (limits or {}).get(key, (1, None))
        value = given.get(key, usual)
        match (value, value) if isinstance(value, int) else value:
            case [int(low), int(high)] if least <= low <= high and (most is None or high <= most):
                ranges[key] = (low, high)
            case _:
                bounds = f"{least} <= low <= high" + (f" <= {most}" if most else "")
                raise UserError(f"{task}: {key} is a range [low, high] with {bounds}, not {value!r}.")
    return ranges


def split_of(task: str, key: str) -> Split:
    """The one split that may hold a problem; `key` is its normalised text. The same on every machine, for ever."""
    share = int.from_bytes(blake2b(f"{task}\n{key}".encode(), digest_size=8).digest(), "big") % 100
    return "train" if share < 80 else "validation" if share < 90 else "test"


def deal(task: str, split: Split, n: int, candidates: Iterable[tuple[str, T]]) -> Iterator[T]:
    """The first n of the (key, candidate) pairs that belong to `split`, held-out ones each once.

    Makes no more candidates than it needs. Stops early when PATIENCE candidates in a row brought nothing new; raises
    UserError if there was none at all.
    """
    if split not in SPLITS:
        raise UserError(f'There is no split "{split}"; a split is one of {", ".join(SPLITS)}.{nearest(split, SPLITS)}')
    if n < 0:
        raise UserError(f"{task}: a number of problems cannot be {n}.")
    if n == 0:
        return
    seen: set[str] = set()
    dealt = idle = 0
    for key, candidate in candidates:
        if split_of(task, key) == split and (split == "train" or key not in seen):
            if split != "train":
                seen.add(key)
            dealt, idle = dealt + 1, 0
            yield candidate
        else:
            idle += 1
        if dealt == n or idle == PATIENCE:
            break
    if not dealt:
        raise UserError(f"{task}: no {split} problem turned up in {PATIENCE} draws; ask for larger problems.")


def unfinished(completion: Completion) -> Outcome | None:
    """The outcome of a completion that has no answer to grade because it was cut off; None if it came to its end.

    One that we cancelled ourselves says nothing about the model: it is `infrastructure`, never scored.
    """
    outcomes: dict[str, Outcome] = {"length": "truncated", "cancelled": "infrastructure"}
    return outcomes.get(completion.finish)


__all__ = [
    "PATIENCE", "SPLITS", "Cautious", "Examining", "Golden", "Judged", "Split", "Task", "Verdict", "Worked", "deal",
    "first_of", "later_turns", "split_of", "unfinished", "verdict",
]  # fmt: skip
