"""Self-consistency (Wang et al. 2022, arXiv 2203.11171): of several answers to one question, the one most agree with.

Answers differ in words where they agree in what they say, so what votes is the result alone: the last \\boxed{...}, or
what stands behind the last "answer is", or the last number of the last line, or that line. Numbers are one where their
values are: 0.5, 1/2, \\frac{1}{2} and 50%.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
SAID = re.compile(r"(?<!\bno )\banswer\s*(?:is|:|=)[\s:*]*", re.IGNORECASE)
NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:[eE][-+]?\d{1,2}(?!\d))?(?:\s?/\s?\d+)?\s?%?")
FRACTION = re.compile(r"(-?)\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
LONGEST = 60  # letters of a number; what is longer is compared as text
END = 4096  # letters at the end of an answer in which its result is looked for


def majority(answers: Sequence[str]) -> tuple[int, float]:
    """(index of the first answer that says what most do, the share of all answers that say it).

    Of equally many votes, those that came first win. An answer without a result has no vote; if none has one, it is
    (0, 0.0).
    """
    assert answers
    results = [result(answer) for answer in answers]
    votes: dict[Fraction | str, int] = {}
    for one in results:
        if one is not None:
            votes[one] = votes.get(one, 0) + 1
    if not votes:
        return 0, 0.0
    most = max(votes, key=lambda one: votes[one])  # the first of equals, as they are in order
    return results.index(most), votes[most] / len(answers)


def result(answer: str) -> Fraction | str | None:
    """What an answer comes to, in a form that compares: a number, or a text in small letters; None if there is none."""
    text = FRACTION.sub(r"\1\2/\3", answer.rstrip()[-END:])
    said = _boxed(text)
    if said is None and (found := [*SAID.finditer(text)]):
        rest = text[found[-1].end() :].splitlines()
        said = _sentence(rest[0]) if rest else None
        if said is not None and number(said) is None and (numbers := NUMBER.findall(said)) and len(numbers) == 1:
            said = numbers[0]
    if not said:
        lines = text.splitlines()
        numbers = NUMBER.findall(lines[-1]) if lines else []
        said = numbers[-1] if numbers else lines[-1] if lines else ""
    value = number(said)
    return value if value is not None else _plain(said) or None


def _boxed(text: str) -> str | None:
    """What the last box holds; a box that is not closed holds nothing."""
    begins = {found.end() for found in BOXED.finditer(text)}
    last, opened = None, list[int]()
    for at, letter in enumerate(text if begins else ""):
        if letter == "{":
            opened.append(at + 1)
        elif letter == "}" and opened and (begin := opened.pop()) in begins and (last is None or begin > last[0]):
            last = begin, at
    return text[last[0] : last[1]] if last else None


def _sentence(text: str) -> str:
    """Up to a full stop that is no decimal point."""
    return re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]


def _plain(text: str) -> str:
    text = WRAPPED.sub(r"\1", text)
    return " ".join(re.sub(r"\\[,;!()\[\] ]|[$*`\"]", " ", text).split()).strip(" .,;:!").casefold()


def number(text: str) -> Fraction | None:
    """The value of a text that is a number and nothing else, but for units of money; None where it is not."""
    text = FRACTION.sub(r"\1\2/\3", WRAPPED.sub(r"\1", text).replace("\\%", "%"))
    text = re.sub(r"\\[,;!()\[\] ]|\\?[$€£]|[*`]", "", text).strip().rstrip(".").replace("−", "-").replace("{,}", ",")
    if len(text) > LONGEST or not NUMBER.fullmatch(text):
        return None
    text = "".join(text.replace(",", "").split())
    above, _, below = text.rstrip("%").partition("/")
    try:
        value = Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if text.endswith("%") else value


__all__ = ["majority", "number", "result"]
