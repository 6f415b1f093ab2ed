"""Regular expressions of a user's file against answers, in a process of its own (apart.py).

Python's matching takes exponential time for some expressions and some answers, and cannot be interrupted. An answer
that keeps an expression busy for longer than SECONDS is a `timeout`.

Request: {"patterns": [texts], "answer": text}; reply: the pattern that is found in the answer, or null.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

from mull.tasks.apart import Apart, StoppedError, attend, limit
from mull.tasks.base import Verdict
from mull.tasks.graders import either

SECONDS = 2.0


@cache
def _handle() -> Apart:
    return Apart("mull.tasks.patterns", "mull", "")


def grade(golds: Sequence[str], answer: str) -> Verdict:
    """Solved where one of the expressions is found anywhere in the answer: ^ and $ fix its ends."""
    if not answer.strip():
        return Verdict(0.0, "unparsed", {"regex": "no text"})
    try:
        [found] = _handle().ask({"patterns": list(golds), "answer": answer.strip()})
    except StoppedError as stop:
        return Verdict(0.0, "timeout", {"regex": "took too long" if stop.timeout else "ended the process"})
    if found is None:
        return Verdict(0.0, "wrong", {"regex": f"does not match {either(golds)}"})
    return Verdict(1.0, "solved", {"regex": f"matches {found[:60]}"})


# the other side


def replies_to(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    with limit(SECONDS):
        found = next((one for one in request["patterns"] if re.search(one, request["answer"])), None)
    yield {"item": found}
    yield {"end": True}


if __name__ == "__main__":
    attend(lambda: None, replies_to)
