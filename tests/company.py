"""Requests of all kinds that come and go, for engines whose answers must not depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from small import tokens_of

from mull.engine.core import Core
from mull.engine.decoder import Said
from mull.engine.scheduler import Part
from mull.types import Completion, Grammar, Request, Sampling


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


def alone(request: Request, core: Core) -> Completion:
    core.add("it", request)
    return run(core)["it"]


def traffic(count: int, draw: Random, forms: Sequence[Grammar | None] = ()) -> list[Request]:
    """Prompts that share beginnings of many lengths, and options of all kinds; the forms where some are given."""
    beginnings = [tokens_of(60, seed) for seed in range(3)]
    asked = []
    for i in range(count):
        prompt = draw.choice(beginnings)[: draw.randrange(1, 60)] + tokens_of(draw.randrange(1, 20), 100 + i)
        sampling = Sampling(
            max_tokens=draw.randrange(1, 50), temperature=draw.choice([0.0, 1.0, 0.7]),
            top_p=draw.choice([1.0, 0.9]), top_k=draw.choice([0, 20]), seed=draw.randrange(3),
            repetition_penalty=draw.choice([1.0, 1.2]), top_logprobs=draw.choice([0, 2]),
            thinking_tokens=draw.choice([None, 5]), grammar=draw.choice(forms) if forms else None,
        )  # fmt: skip
        asked.append(Request(tuple(prompt), sampling, (i,)))
    return asked


def strained(core: Core, draw: Random, chance: float = 0.15) -> None:
    """From now on memory does not suffice for some steps, at their begin or their end. One answer always fits."""
    decode = core._decode

    def tried(parts: Sequence[Part]) -> Said:
        fails = len(core.scheduler.running) > 1 and draw.random() < chance
        if fails and draw.random() < 0.5:
            raise MemoryError
        said = decode(parts)
        if fails:
            raise MemoryError
        return said

    core._decode = tried


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
            assert answer.error is None, answer.error
            if answer.finish is not None and isinstance(answer.name, int):
                ended[answer.name] = answer.completion()
    return ended
