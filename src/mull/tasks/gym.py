"""The process that reasoning-gym lives in: makes problems and scores answers, a JSON request a line. puzzle.py runs it.

Why a process of its own: several of its scorers hand the answer to sympy, which *evaluates* it (apart.py). The process
also has a fixed PYTHONHASHSEED, without which some sets make other problems in every process.

Entries travel as JSON and come back as they were, tuples, non-text keys and fractions included: see `pack`.

Requests: {"make": set, "config": {}, "split": split, "n": n, "seed": seed}
      or  {"score": set, "config": {}, "question": text, "entry": packed, "answer": text}
Replies:  {"item": ...} any number of times, then {"end": true} or {"error": text}; once at the start {"end": true}.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import fields
from fractions import Fraction
from functools import cache
from hashlib import blake2b
from itertools import count
from typing import Any

from mull.config import nearest
from mull.tasks import TAUGHT
from mull.tasks.apart import attend, limit
from mull.tasks.arithmetic import normalised
from mull.tasks.base import deal
from mull.types import UserError

BLOCK = 500  # items a dataset object holds: reasoning-gym's own default; the next block has another seed
MAKE_SECONDS = 120.0  # for one item; the slowest sets take under two
SCORE_SECONDS = 5.0  # for one answer; the slowest honest ones take milliseconds


def pack(value: Any) -> Any:
    """As JSON that `unpack` turns back into an equal value. Raises TypeError for a type that no set uses."""
    match value:
        case None | bool():
            return value
        case str():
            return str(value)  # numpy's str_ and str enums too
        case int():
            return int(value)
        case float():
            return float(value)
        case list():
            return [pack(v) for v in value]
        case tuple():
            return {"()": [pack(v) for v in value]}
        case Fraction():
            return {"/": [value.numerator, value.denominator]}
        case dict() if all(isinstance(k, str) for k in value) and not value.keys() & {"()", "/", "{}"}:
            return {k: pack(v) for k, v in value.items()}
        case dict():
            return {"{}": [[pack(k), pack(v)] for k, v in value.items()]}
    raise TypeError(f"an entry holds a {type(value).__name__}")


def unpack(value: Any) -> Any:
    match value:
        case list():
            return [unpack(v) for v in value]
        case {"()": items}:
            return tuple(unpack(v) for v in items)
        case {"/": [numerator, denominator]}:
            return Fraction(numerator, denominator)
        case {"{}": pairs}:
            return {unpack(k): unpack(v) for k, v in pairs}
        case dict():
            return {k: unpack(v) for k, v in value.items()}
    return value


def dataset(name: str, config: dict[str, Any], seed: int) -> Any:
    """BLOCK items of a set. Raises UserError for a field or a value that the set's configuration does not have."""
    from reasoning_gym.factory import DATASETS

    cls, config_cls = DATASETS[name]
    known = sorted({field.name for field in fields(config_cls)} - {"seed", "size"})
    for key in config.keys() - set(known):
        raise UserError(f'gym/{name} has no size "{key}"; its sizes are {", ".join(known)}.{nearest(key, known)}')
    return cls(config_cls(**config, seed=seed, size=BLOCK))


@cache
def scorer(name: str, config: str) -> Any:
    return dataset(name, json.loads(config), 0)


def candidates(name: str, config: dict[str, Any], seed: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key that decides the split, entry) for ever: blocks of the set, each with a seed of its own.

    The sets that are also house families use the house's key, so that `gym/gcd` never tests what `gcd` trains on.
    """
    for block in count():
        state = blake2b(f"{name}/{seed}/{block}".encode(), digest_size=4).digest()
        first = int.from_bytes(state, "big") // 2  # sets add the index to it and want less than 2^32
        items = dataset(name, config, first)
        for index in range(BLOCK):
            random.seed(first + index)  # for sets that use the global generator
            with limit(MAKE_SECONDS):
                entry = items[index]
            question = entry["question"]
            yield normalised(question) if name in TAUGHT else question, entry


def make(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name, config = request["make"], request["config"]
    task = name if name in TAUGHT else f"gym/{name}"
    for entry in deal(task, request["split"], request["n"], candidates(name, config, request["seed"])):
        answer = entry["answer"]
        yield {
            "question": entry["question"],
            "answer": answer if isinstance(answer, str) else "",
            "entry": pack({"answer": answer, "metadata": entry["metadata"]}),
        }


def score(request: dict[str, Any]) -> float:
    """reasoning-gym's own score of an answer; 0 where its scorer cannot take the answer."""
    judge = scorer(request["score"], json.dumps(request["config"], sort_keys=True))
    entry = {"question": request["question"], **unpack(request["entry"])}
    with limit(SCORE_SECONDS):
        try:
            return float(judge.score_answer(request["answer"], entry))
        except (Exception, SystemExit):  # whatever the evaluated text may raise
            return 0.0


def replies_to(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    try:
        for item in make(request) if "make" in request else [score(request)]:
            yield {"item": item}
        yield {"end": True}
    except UserError as error:
        yield {"error": str(error)}
    except Exception as error:  # the sets check their configuration with assert, at the start or not at all
        yield {"error": f"gym/{request.get('make', request.get('score'))}: {str(error) or type(error).__name__}."}


def start() -> None:
    import reasoning_gym  # noqa: F401


if __name__ == "__main__":
    attend(start, replies_to)
