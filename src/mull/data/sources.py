"""Where examples come from: worked problems, graded rollouts, files of text.

A source is a function from an index to an Example, the same in every process: that is all deterministic mixing and
exact resume need. Problems come from the train split only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any

from pydantic import Field

from mull.config import Config
from mull.data.batch import Example
from mull.tasks import TAUGHT, Split, find
from mull.text.chat import Chat
from mull.types import Message, Problem, Rollout, UserError

CHUNK = 256  # problems drawn at a time; part of what a seed means, so changing it changes every run

NUMBER = re.compile(r"\d+")

Source = Callable[[int], Example]


class Draw(Config):
    """Problems of one task and size. `size` is what the task understands, e.g. {terms = [5, 6]}."""

    task: str
    weight: int = Field(default=1, gt=0)
    size: dict[str, Any] = {}
    label: str = "held-out"  # in reports: "held-out", or e.g. "beyond" for sizes no chain was taught of


def seed_of(*parts: object) -> int:
    """A 63-bit seed from any printable parts, stable across processes and machines."""
    return int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1


class Problems:
    """An endless, weighted, shuffled mixture of problems: `problems(i)` is a function of (seed, i)."""

    def __init__(self, draws: Sequence[Draw], seed: int, split: Split = "train"):
        if not draws:
            raise UserError("A mixture needs at least one task.")
        self.draws, self.seed = draws, seed
        self.split: Split = split
        self.tasks = [find(draw.task) for draw in draws]
        self.pattern = [k for k, draw in enumerate(draws) for _ in range(draw.weight)]
        self._chunks: dict[int, tuple[int, list[Problem]]] = {}

    def pick(self, i: int) -> tuple[int, int]:
        """(which draw, which of its problems): every block of len(pattern) holds each draw `weight` times."""
        block, at = divmod(i, len(self.pattern))
        order = self.pattern.copy()
        random.Random(seed_of(self.seed, "order", block)).shuffle(order)
        which = order[at]
        return which, block * self.draws[which].weight + order[:at].count(which)

    def __call__(self, i: int) -> Problem:
        which, index = self.pick(i)
        chunk, at = divmod(index, CHUNK)
        held = self._chunks.get(which)
        if held is None or held[0] != chunk:
            seed = seed_of(self.seed, which, chunk)
            problems = self.tasks[which].problems(self.split, CHUNK, seed, **self.draws[which].size)
            held = self._chunks[which] = chunk, problems
        return held[1][at % len(held[1])]


def conversations(draws: Sequence[Draw], chat: Chat, seed: int, direct: float) -> Source:
    """Chat examples of taught tasks. Of every hundred, 100 * `direct` answer at once; the rest think first."""
    problems, thinks = _taught(draws, seed), _thinks(direct)

    def example(i: int) -> Example:
        problem = problems(i)
        solution = TAUGHT[problem.task].solution(problem)
        return Example(*chat.example([*problem.messages, solution], thinking=thinks(i)))

    return example


def documents(draws: Sequence[Draw], chat: Chat, seed: int, direct: float) -> Source:
    """Worked problems as plain documents, every token learnt: question, steps, answer, end of text.

    Of every hundred, 100 * `direct` leave out the steps.
    """
    problems, thinks = _taught(draws, seed), _thinks(direct)

    def example(i: int) -> Example:
        problem = problems(i)
        solution = TAUGHT[problem.task].solution(problem)
        steps = [solution.reasoning or ""] if thinks(i) else []
        return _document(chat, problem.messages[-1].content, *steps, solution.content)

    return example


def recitals(draws: Sequence[Draw], chat: Chat, seed: int, spoken: bool = False) -> Source:
    """Questions whose numbers are said again, each time without the first: practice in copying, no arithmetic.

    A model that has only copied two to four numbers skips one of five; copying is learnt by copying. Plain documents,
    or (`spoken`) conversations that ask for it and are answered after thinking.
    """
    problems = Problems(draws, seed)

    def example(i: int) -> Example:
        question = problems(i).messages[-1].content
        numbers = list(NUMBER.finditer(question))
        if not numbers:
            raise UserError(f"{problems(i).task} asks questions without numbers, so there is nothing to say again.")
        lines = [question[number.start() : numbers[-1].end()] for number in numbers]
        if not spoken:
            return _document(chat, question, *lines)
        answer = Message("assistant", lines[0], reasoning="\n".join(lines))
        return Example(*chat.example([Message("user", f"Say again: {lines[0]}"), answer], thinking=True))

    return example


def _taught(draws: Sequence[Draw], seed: int) -> Problems:
    for draw in draws:
        if draw.task not in TAUGHT:
            known = ", ".join(TAUGHT)
            raise UserError(f"{find(draw.task).name} has no written solutions to learn from; taught are {known}.")
    return Problems(draws, seed)


def _thinks(direct: float) -> Callable[[int], bool]:
    share = round(100 * direct)
    return lambda i: (i * 61) % 100 >= share  # 61 and 100 share no factor: exact in every hundred, spread within it


def _document(chat: Chat, *lines: str) -> Example:
    ids = [*chat.tokenizer.encode("\n".join(lines)), chat.tokenizer.end_of_text]
    return Example(ids, [1] * len(ids))


def answers(rollouts: Sequence[Rollout], seed: int) -> Source:
    """Prompt and answer of rollouts as they were generated, token for token; endless, shuffled anew each pass."""
    if not rollouts:
        raise UserError("There are no rollouts to learn from.")
    orders: dict[int, list[int]] = {}

    def example(i: int) -> Example:
        epoch, at = divmod(i, len(rollouts))
        if epoch not in orders:
            orders.clear()
            orders[epoch] = list(range(len(rollouts)))
            random.Random(seed_of(seed, "epoch", epoch)).shuffle(orders[epoch])
        return from_rollout(rollouts[orders[epoch][at]])

    return example


def from_rollout(rollout: Rollout) -> Example:
    """Token ids are trained on as they were drawn, never re-tokenised."""
    prompt, answer = rollout.prompt, rollout.completion
    before = [0] * len(prompt)
    return Example(
        [*prompt, *answer.tokens], [*before, *[1] * len(answer.tokens)],
        logprobs=[*before, *answer.logprobs], advantage=rollout.advantage,
        routes=[*before, *answer.routes] if answer.routes else None,
    )  # fmt: skip
