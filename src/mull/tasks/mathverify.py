"""The second verifier for mathematics: math-verify (huggingface/Math-Verify), in a process of its own (apart.py).

It finds, reads and compares in its own way, with sympy, so it shares no mistake with exact.py; it is known to accept
1-1/e for 1+1/e. It is told the answer's text and the gold answer, in a box. Where it finds nothing, or does not come to
an end, it cannot tell.

Request: {"gold": text, "answer": text}; reply: whether they are equal, and how many results it found in the answer.
"""

from __future__ import annotations

import logging
import re
import signal
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from mull.tasks.apart import Apart, StoppedError, attend, limit
from mull.tasks.results import boxes, result, spoken
from mull.tasks.writings import unrepeated

SECONDS = 5.0  # of the processor for one answer, so that a busy machine does not change a score
END = 8_000  # letters at the end of an answer that it is shown
CALCULATION = re.compile(r"<<[^<>\n]*>>")  # of GSM8K's solutions, which read as nonsense between dollar signs
HASHES = re.compile(r"####\s*(?:\\?\$)?([^\n$]+)")
MONEY = re.compile(r"\\?\$(?=\d)")
REWRITTEN = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"\\(?:boxed|fbox|framebox)\s*\{", r"\\boxed{"),
        (r"\{,\}(?=\d{3})|(?<=\d)\\[,!](?=\d{3}(?!\d))", ""),
        (r"°|\\degree(?![a-zA-Z])", r"^\\circ "),
        (r"∞", r"\\infty "),
        (r"π", r"\\pi "),
        (r"~", " "),
        (r"[€£]|\\(?:text)?color\s*\{[^{}]*\}", ""),
        (r"(?<![\d.])(\d+)\s+(\d+)/(\d+)(?![\d.])", r"\1\\frac{\2}{\3}"),
        (r"√\s*(\d+)", r"\\sqrt{\1}"),
        (r"\\sqrt(\[\d+\])(\d)", r"\\sqrt\1{\2}"),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"\\frac\{(\d{1,3}),(\d{3})\}", r"\\frac{\1\2}"),
        (r"\\frac\s*\\pi\s*(\d)", r"\\frac{\\pi}{\1}"),
        (r"(?<=\d)\s*(?:\\cdot)?\s+i(?![A-Za-z])", "i"),
        (r"(\d\.\d+)e(-?\d{1,3})(?!\d)", r"\1\\cdot 10^{\2}"),
        (r"\\varnothing(?![A-Za-z])", r"\\emptyset"),
        (r"\s*\\text\{\s*base\s*\}\s*(\d+)", r"_{\1}"),
        (r"\\boxed\{\s*[A-Za-z]?\([a-z](?:,\s*\\?[a-z]+)*\)\s*=", r"\\boxed{"),
        (r"\\boxed\{(\([A-J]\))\s+\d+\}", r"\\boxed{\1}"),
        (r"\.\s*\}", "}"),
        (r"\\boxed\{(-?[\d.,]*\d)\s+([A-Za-z][A-Za-z ]+)(\^\{?[23]\}?)?\}", r"\\boxed{\1 \\text{ \2}\3}"),
    )
)


class MathVerify:
    """A handle on it, for several threads."""

    def __init__(self) -> None:
        self._apart = Apart(
            "mull.tasks.mathverify",
            "math_verify",
            "Mathematics is graded by math-verify as well: pip install 'math-verify[antlr4_13_2]>=0.9'.",
        )

    def ready(self) -> None:
        """Raises UserError where it is not installed."""
        self._apart.ready()

    def compare(self, gold: str, answer: str, worded: bool = False) -> tuple[bool | None, str]:
        """(whether they are equal, in words); None where it cannot tell.

        `worded`: the answer is prose, where $ is money.
        """
        try:
            [(equal, found)] = self._apart.ask({"gold": gold, "answer": shown(answer, worded)})
            if not found and (said := result(answer)):  # words, or a writing it does not know
                [(equal, found)] = self._apart.ask({"gold": gold, "answer": shown(f"\\boxed{{{said}}}", False)})
        except StoppedError as stop:
            return None, "took too long" if stop.timeout else "stopped"
        if not found:
            return None, "found nothing"
        return equal, "equal" if equal else "not equal"


def shown(answer: str, worded: bool) -> str:
    """What of an answer it is shown: all from its last boxes on, in writings that it knows."""
    answer = unrepeated(spoken(answer)[-END:])
    if found := boxes(answer):
        answer = answer[found[1] :]
    elif worded:
        answer = HASHES.sub(r"The final answer is $\1$", MONEY.sub("", CALCULATION.sub("", answer)))
    for pattern, new in REWRITTEN:
        answer = pattern.sub(new, answer)
    return answer.encode(errors="replace").decode()


# the other side


@lru_cache(maxsize=4096)
def read(text: str) -> Any:
    """Kept: a gold answer is asked for with each sample, and samples end in the same few boxes."""
    from math_verify import parse

    return parse(text, parsing_timeout=0)


def replies_to(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    from math_verify import verify

    equal, found = False, 0
    with limit(SECONDS, signal.ITIMER_PROF):
        try:
            given = read(request["answer"])
            found = len(given)
            equal = bool(given) and verify(
                read(f"\\boxed{{{request['gold']}}}"), given, allow_set_relation_comp=True, timeout_seconds=0
            )
        except (Exception, SystemExit):  # whatever sympy may raise
            equal = False
    yield {"item": [bool(equal), found]}
    yield {"end": True}


def start() -> None:
    import math_verify  # noqa: F401

    logging.disable()


if __name__ == "__main__":
    attend(start, replies_to)
