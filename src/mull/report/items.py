"""Every item of an evaluation, to look at: what was asked, thought, answered and said of it, all targets side by side.

The page has neither scripts nor the network, so all of it is in the page, and the page has a bound: of many answers
the first are there, of long texts the ends, and it says so. The whole is in rollouts/.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from markupsafe import escape

from mull.report import stats, words
from mull.report.summary import Exam
from mull.types import OUTCOMES, Message, Rollout, read_rollouts

ANSWERS = 2000  # in the page at most
SAMPLES = 8  # of one target to one item
MESSAGES = 24  # of one prompt, and so many verifiers
BYTES = 15_000_000  # of text, as it is written into the page; what is around it is about a kilobyte per answer
LENGTHS = (20_000, 8000, 3000, 1000, 300)  # characters of one text: the longest for which all fit
TITLE = 110

T = TypeVar("T")
Key = tuple[Any, ...]
Target = tuple[str, bool]  # model, thinking


@dataclass(frozen=True, slots=True)
class Text:
    """What somebody wrote, without the middle of what is too long in any case."""

    kept: str
    length: int

    @classmethod
    def of(cls, text: str) -> Text:
        return cls(words.middle(text, LENGTHS[0]), len(text))

    def shown(self, most: int) -> str:
        return words.shown(self.kept, most, self.length)


@dataclass(frozen=True, slots=True)
class Turn:
    """Of an answer; most have one."""

    thinking: Text
    answer: Text


@dataclass(frozen=True, slots=True)
class Given:
    """One answer to an item."""

    sample: int
    outcome: str
    turns: tuple[Turn, ...]
    words: tuple[tuple[str, Text], ...]  # what each verifier said
    error: Text
    tokens: int
    thinking_tokens: int
    seconds: float
    usd: float
    charged: bool  # by an endpoint; else its part of what the machine's time cost, by tokens


@dataclass(frozen=True, slots=True)
class Column:
    """One target's answers to an item."""

    target: int
    file: str
    outcomes: tuple[tuple[str, int], ...]  # of all its answers, shown or not
    answers: tuple[Given, ...]


@dataclass(frozen=True, slots=True)
class Item:
    task: int
    id: str
    title: str
    prompt: tuple[tuple[str, Text], ...]  # (role, text)
    left_out: int  # messages of the prompt that are not shown
    gold: Text
    columns: tuple[Column, ...]
    differ: bool  # some target solved it more often than another

    @property
    def classes(self) -> str:
        """By which the page's filters find it: task, outcomes of any target, outcomes by target."""
        marks = [f"t{self.task}", *(["differ"] if self.differ else [])]
        for column in self.columns:
            marks += [f"w{column.target}", *(f"w{column.target}-{name}" for name, _ in column.outcomes)]
        marks += dict.fromkeys(f"has-{name}" for column in self.columns for name, _ in column.outcomes)
        return " ".join(marks)


@dataclass(frozen=True, slots=True)
class Browser:
    items: tuple[Item, ...]
    tasks: tuple[str, ...]
    targets: tuple[Target, ...]
    total: int  # items that there are
    most: int  # characters of one text that are shown
    cut: bool  # whether a text is longer

    def show(self, text: Text) -> str:
        return text.shown(self.most)

    @property
    def outcomes(self) -> list[str]:
        """Those that occur, in the one order there is."""
        seen = {name for item in self.items for column in item.columns for name, _ in column.outcomes}
        return [name for name in OUTCOMES if name in seen]


@dataclass
class _Drawer:
    """What is known of an item while its files are read."""

    first: Rollout
    columns: list[Column] = field(default_factory=list)


def browse(folder: Path, exams: Sequence[Exam], answers: int = ANSWERS, size: int = BYTES) -> Browser:
    """Read the rollouts of `exams` in `folder` again, this time for their words.

    Raises UserError for a file that cannot be understood.
    """
    tasks = tuple(dict.fromkeys(map(_task, exams)))
    targets = tuple(dict.fromkeys((exam.row["model"], exam.row["thinking"]) for exam in exams))
    chosen, total = _choose(exams, answers)
    drawers: dict[Key, _Drawer] = {}
    for exam in exams:
        found: dict[Key, list[Rollout]] = {}
        for rollout in read_rollouts(folder / "rollouts" / exam.row["file"]):
            key = (_task(exam), rollout.problem.id)
            if key in chosen:
                found.setdefault(key, []).append(rollout)
        target = targets.index((exam.row["model"], exam.row["thinking"]))
        for key, rollouts in found.items():
            drawers.setdefault(key, _Drawer(rollouts[0])).columns.append(_column(target, exam, rollouts))
    order = {key: place for place, key in enumerate(chosen)}
    items = tuple(_item(tasks.index(key[0]), drawers[key]) for key in sorted(drawers, key=order.__getitem__))
    most = _length(items, size)
    return Browser(items, tasks, targets, total, most, any(text.length > most for text in _texts(items)))


def _task(exam: Exam) -> str:
    """A set of problems, as the page names it."""
    row = exam.row
    size = ", ".join(f"{name} {value}" for name, value in row["size"].items())
    return " ".join(part for part in (row["task"], f"({size})" if size else "", _label(row["label"])) if part)


def _label(label: str) -> str:
    return "" if label == "held-out" else label


def _choose(exams: Sequence[Exam], answers: int) -> tuple[dict[Key, None], int]:
    """Items, in the order of the page, as many as have room: the first of each task in turn. And how many there are."""
    count: dict[Key, int] = {}
    by_task: dict[str, dict[Key, None]] = {}
    for exam in exams:
        for (_, _, name), given in exam.problems.items():
            key = (_task(exam), name)
            by_task.setdefault(key[0], {})[key] = None
            count[key] = count.get(key, 0) + min(len(given), SAMPLES)
    room, taken = answers, set()
    for key in _in_turn(by_task.values()):
        room -= count[key]
        if room < 0 and taken:
            break
        taken.add(key)
    return {key: None for keys in by_task.values() for key in keys if key in taken}, len(count)


def _in_turn(lists: Iterable[Iterable[T]]) -> Iterator[T]:
    return (one for turn in zip_longest(*lists) for one in turn if one is not None)


def _column(target: int, exam: Exam, rollouts: Sequence[Rollout]) -> Column:
    outcomes = [rollout.outcome for rollout in rollouts]
    each = exam.row["usd"] / exam.row["tokens"] if exam.row["tokens"] else 0.0
    return Column(
        target, exam.row["file"], tuple((name, outcomes.count(name)) for name in OUTCOMES if name in outcomes),
        tuple(_given(rollout, each) for rollout in rollouts[:SAMPLES]),
    )  # fmt: skip


def _given(rollout: Rollout, each: float) -> Given:
    completions = (*rollout.earlier, rollout.completion)
    charged = [one.usd for one in completions if one.usd is not None]
    tokens = sum(one.count for one in completions)
    return Given(
        rollout.sample, rollout.outcome,
        tuple(Turn(Text.of(one.reasoning), Text.of(one.text)) for one in completions),
        tuple((words.shown(name, 60), Text.of(said)) for name, said in list(rollout.words.items())[:MESSAGES]),
        Text.of(rollout.completion.error), tokens, sum(one.thinking_tokens for one in completions),
        sum(one.seconds for one in completions), sum(charged) if charged else tokens * each, bool(charged),
    )  # fmt: skip


def _item(task: int, drawer: _Drawer) -> Item:
    problem, columns = drawer.first.problem, drawer.columns
    prompt = _asked(drawer.first)
    asked = [message.content for message in prompt if message.role == "user"]
    chief = 0 if drawer.first.earlier else -1  # behind examples the last is what is asked; in a conversation, the first
    title = " ".join(words.shown((asked[chief] if asked else problem.id)[: 4 * TITLE]).split())
    title = title if len(title) <= TITLE else f"{title[: TITLE - 1]}…"
    half = MESSAGES // 2
    few = prompt if len(prompt) <= MESSAGES else [*prompt[:half], *prompt[-half:]]
    rates = [_rate(column) for column in columns]
    return Item(
        task, words.shown(problem.id, 200), title or "(nothing)",
        tuple((words.shown(message.role, 40), Text.of(message.content)) for message in few), len(prompt) - len(few),
        Text.of(problem.answer), tuple(columns), len({rate for rate in rates if rate is not None}) > 1,
    )  # fmt: skip


def _asked(rollout: Rollout) -> list[Message]:
    """What every target was told: without a model's own answers to the turns before the last."""
    messages = list(rollout.problem.messages)
    own = [place for place, message in enumerate(messages) if message.role == "assistant"]
    for place in reversed(own[max(0, len(own) - len(rollout.earlier)) :]):
        del messages[place]
    return messages


def _rate(column: Column) -> float | None:
    counts = dict(column.outcomes)
    scored = sum(counts.values()) - counts.get(stats.NOT_SCORED, 0)
    return counts.get("solved", 0) / scored if scored else None


def _texts(items: Sequence[Item]) -> Iterator[Text]:
    for item in items:
        yield item.gold
        yield from (text for _, text in item.prompt)
        for given in (given for column in item.columns for given in column.answers):
            yield given.error
            yield from (text for _, text in given.words)
            yield from (text for turn in given.turns for text in (turn.thinking, turn.answer))


def _length(items: Sequence[Item], size: int) -> int:
    """Characters of one text for which all of them fit into `size` bytes of the page."""
    for most in LENGTHS[:-1]:
        room = size
        for text in _texts(items):
            room -= len(escape(text.shown(most)).encode("utf-8"))
            if room < 0:
                break
        else:
            return most
    return LENGTHS[-1]


__all__ = ["Browser", "Column", "Given", "Item", "Text", "browse"]
