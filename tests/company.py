"""Requests of all kinds that come and go, for engines whose answers must not depend on it."""

from __future__ import annotations

from random import Random

from small import tokens_of

from mull.engine.core import Core
from mull.types import Completion, Request, Sampling


def run(core: Core) -> dict[object, Completion]:
    """To its end."""
    ended: dict[object, Completion] = {}
    while core.busy:
        for answer in core.step():
            assert answer.error is None
            if answer.finish is not None:
                ended[answer.name] = answer.completion()
    return ended


def bits(answer: Completion) -> tuple[object, ...]:
    return answer.tokens, answer.logprobs, answer.alternatives, answer.finish, answer.text, answer.reasoning


def traffic(count: int, draw: Random) -> list[Request]:
    """Prompts that share beginnings of many lengths, and options of all kinds."""
    beginnings = [tokens_of(60, seed) for seed in range(3)]
    asked = []
    for i in range(count):
        prompt = draw.choice(beginnings)[: draw.randrange(1, 60)] + tokens_of(draw.randrange(1, 20), 100 + i)
        sampling = Sampling(
            max_tokens=draw.randrange(1, 50), temperature=draw.choice([0.0, 1.0, 0.7]),
            top_p=draw.choice([1.0, 0.9]), top_k=draw.choice([0, 20]), seed=draw.randrange(3),
            repetition_penalty=draw.choice([1.0, 1.2]), top_logprobs=draw.choice([0, 2]),
            thinking_tokens=draw.choice([None, 5]),
        )  # fmt: skip
        asked.append(Request(tuple(prompt), sampling, (i,)))
    return asked


def under_traffic(core: Core, asked: list[Request], draw: Random) -> dict[object, Completion]:
    """They come at random moments; in between come others that are cancelled again."""
    waiting, ended, strangers = list(enumerate(asked)), {}, 0
    draw.shuffle(waiting)
    while waiting or core.busy:
        if waiting and draw.random() < 0.5:
            name, request = waiting.pop()
            core.add(name, request, salt=draw.choice(["", "x"]))
        if waiting and draw.random() < 0.2:
            strangers += 1
            core.add(f"stranger {strangers}", draw.choice(asked))
        if strangers and draw.random() < 0.2:
            core.cancel(f"stranger {draw.randrange(strangers) + 1}")
        for answer in core.step():
            if answer.finish is not None and isinstance(answer.name, int):
                ended[answer.name] = answer.completion()
    return ended
