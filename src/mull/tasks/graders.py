"""What counts as right in a user's own file: one grader for each kind of gold answer.

A grader reads the result out of an answer and compares it with each gold; any one of several golds will do. The result
is what the answer says it is (results.py: the last \\boxed{...}, "answer is", ####), or else what stands on its last
line. An answer that names two results ("18 or 19") is wrong even where one of them is the gold.

Nothing here runs or evaluates what a model wrote, and all of it takes time in proportion to the answer's length.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from mull.tasks.base import Verdict
from mull.tasks.results import result

END = 20_000  # letters at the end of an answer in which its result is looked for
LONGEST = 400  # letters of a number; no gold is longer
POWER = 400  # of ten in a number
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
NUMBER = re.compile(
    rf"(?<![\w.])[-+]?\s?(?:\d{{1,9}} \d{{1,9}}/\d{{1,9}}|{DIGITS}(?:[eE][-+]?\d{{1,4}})?(?:\s?/\s?{DIGITS})?)\s?%?",
    re.ASCII,
)
UNIT = re.compile(r"\s*[^\W\d_]*(?:[\s/^.]{1,2}[^\W\d_]+){0,3}[²³]?")
HEDGE = re.compile(r"[,/;+*^×·]|\b(?:or|and|to|not|maybe|perhaps|possibly|either)\b|^\s*[-–—]\s*$", re.IGNORECASE)
DENIED = re.compile(r"\b(?:not|isn't|never)\b", re.IGNORECASE)
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{0,400})\}\s*\{([^{}]{0,400})\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]{0,400})\}")
FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
LETTER = re.compile(r"\W{0,4}([A-J])(?:\W{0,4}$|[).:,\]]|\s*[-–—]\s)")
LETTER_SAID = re.compile(r"\W{0,4}([A-J])(?=\W|$)(?!['’]|\s+(?!because|since|as|which|and|or)[a-z])")
OTHER = re.compile(r"(?:\b(?:or|and)\b|[,/])\W{0,3}([A-J])\b(?!\s?[a-z])")


class UnreadableError(ValueError):
    """An answer without a result of the kind that is asked for. The message says what is missing."""


class SeveralError(ValueError):
    """An answer with several results."""


def number(golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """Equal as numbers, exactly. A currency sign, a unit behind and the sign for per cent make no difference."""
    said = single_number(answer)
    return _compared(said, golds, lambda gold: _same_number(gold, said))


def _same_number(gold: str, said: str) -> bool:
    value, wanted = value_of(said), value_of(gold)
    if value is None or wanted is None:
        return False
    plain = [value_of(text.replace("%", "")) for text in (gold, said)]
    return value == wanted or ("%" in gold + said and plain[0] == plain[1])


def single_number(answer: str) -> str:
    """The one number that an answer comes to. Raises UnreadableError where there is none, SeveralError for several."""
    said = result(answer)
    if said is None:  # the last number of the last line that has one
        lines = (_simple(line) for line in reversed(answer[-END:].splitlines()))
        line = next((line for line in lines if NUMBER.search(line)), "")
        found = [*NUMBER.finditer(line)][-2:]
    else:
        line = _simple(said).rpartition("=")[2]
        found = [*NUMBER.finditer(line)][:2]
    if not found:
        raise UnreadableError("no number")
    if said is not None and DENIED.search(line[: found[0].start()]):
        raise UnreadableError("it says what the answer is not")
    if len(found) == 2 and HEDGE.search(line[found[0].end() : found[1].start()]):
        raise SeveralError(f"several numbers: {line[found[0].start() : found[1].end()].strip()[:80]}")
    return found[-1 if said is None else 0][0].strip()


def value_of(text: str) -> Fraction | None:
    """The exact value of a text that is a number, with or without a unit behind; None where it is none."""
    if len(text) > LONGEST:
        return None
    plain = unicodedata.normalize("NFKC", _simple(text)).replace("⁄", "/").strip().rstrip(".").strip()
    found = NUMBER.match(plain)
    if not found or not UNIT.fullmatch(plain[found.end() :]):
        return None
    digits = found[0].replace(",", "").rstrip("% ")
    whole, blank, part = digits.strip().partition(" ")
    if blank and "/" in part and whole.lstrip("-+").isdigit():  # 3 1/2
        digits, sign = part, -1 if whole.startswith("-") else 1
    else:
        digits, whole, sign = digits.replace(" ", ""), "0", 1
    above, _, below = digits.partition("/")
    if abs(int((re.search(r"[eE]([-+]?\d+)", above) or "00")[1])) > POWER:
        return None
    try:
        value = int(whole) + sign * Fraction(above) / Fraction(below or 1)
    except (ValueError, ZeroDivisionError):
        return None
    return value / 100 if found[0].endswith("%") else value


def _simple(text: str) -> str:
    """LaTeX's ways to write a number as everybody's, without markup and currency."""
    text = WRAPPED.sub(r" \1", FRACTION.sub(r" \1/\2", text)).replace("\\%", "%").replace("{,}", ",")
    return re.sub(r"\\[,;!()\[\] ]|\*\*|\\?[$`£€¥]|\^\s*\{?\\circ\}?", "", text).replace("−", "-")


def same_text(golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """Equal but for case, spaces, and punctuation or markup around: the result, the last line, or all of it."""
    said = [one for one in (result(answer), _last_line(answer), answer[-END:]) if one and normalised(one)]
    if not said:
        raise UnreadableError("no text")
    texts = {normalised(one) for one in said}
    return _compared(repr(said[0].strip()[:60]), golds, lambda gold: normalised(gold) in texts)


def normalised(text: str) -> str:
    text = WRAPPED.sub(r"\1", unicodedata.normalize("NFKC", text)).replace("’", "'").casefold()
    return " ".join(re.sub(r"\*\*|`|\\[,;!()\[\] ]", " ", text).split()).strip(" .,;:!?\"'$_#*")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2][-END:]


def choice(golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """The letter of the gold: alone, in brackets, or before the words of the choice."""
    said = result(answer)
    form = LETTER if said is None else LETTER_SAID
    for place in [_last_line(answer), answer.strip().split("\n", 1)[0][:END]] if said is None else [said]:
        plain = _simple(place).strip()
        plain = plain.upper() if len(re.findall(r"\w", plain)) == 1 else plain
        if found := form.match(plain):
            if others := sorted(set(OTHER.findall(plain)) - {found[1]}):
                raise SeveralError(f"several letters: {found[1]} and {', '.join(others)}")
            return _compared(found[1], golds, lambda gold: gold.strip().strip("().").upper() == found[1])
    raise UnreadableError("no letter")


def contains(golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """The gold's words stand somewhere in the answer, as whole words. An answer that lists everything passes."""
    said = normalised(answer)
    if not said:
        raise UnreadableError("no text")
    found = next((gold for gold in golds if _within(normalised(gold), said)), None)
    return found is not None, f"it holds {found!r}" if found else f"it does not hold {either(golds)}"


def _within(gold: str, said: str) -> bool:
    at = said.find(gold)
    while gold and at >= 0:
        before, behind = said[max(0, at - 1) : at], said[at + len(gold) : at + len(gold) + 1]
        if not ((before.isalnum() and gold[0].isalnum()) or (behind.isalnum() and gold[-1].isalnum())):
            return True
        at = said.find(gold, at + len(gold))
    return False


def same_json(golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """Equal as JSON: keys in any order, numbers by value, true is not 1. It may stand in a fence or behind words."""
    found = read_json(answer)
    return _compared(json.dumps(found, default=str)[:80], golds, lambda gold: _equal(found, _loads(gold)))


def read_json(answer: str) -> Any:
    """The JSON of an answer. Raises UnreadableError."""
    end = answer.strip()[-END:]
    first = min((at for at in (end.find("{"), end.find("[")) if at >= 0), default=len(end))
    for place in (end, *FENCED.findall(end)[-1:], end[first:].strip().strip("`"), _last_line(end)):
        try:
            return _loads(place)
        except (ValueError, RecursionError, InvalidOperation):
            continue
    raise UnreadableError("no JSON")


def _loads(text: str) -> Any:
    return json.loads(text, parse_float=Decimal, parse_constant=_no_number)


def _no_number(text: str) -> None:
    raise ValueError(text)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_equal, a, b))
    return isinstance(a, bool) == isinstance(b, bool) and a == b


def _compared(said: str, golds: Sequence[str], same: Callable[[str], bool]) -> tuple[bool, str]:
    right = any(map(same, golds))
    return right, f"{said[:80]} {'=' if right else 'is not'} {either(golds)}"


def either(golds: Sequence[str]) -> str:
    return " or ".join(gold.strip()[:60] for gold in golds[:3]) + (" or ..." if len(golds) > 3 else "")


PLAIN: dict[str, Callable[[Sequence[str], str], tuple[bool, str]]] = {
    "number": number,
    "text": same_text,
    "choice": choice,
    "contains": contains,
    "json": same_json,
}


def grade(name: str, golds: Sequence[str], answer: str) -> Verdict:
    """By one of PLAIN. Never raises for anything a model may write."""
    try:
        right, words = PLAIN[name](golds, answer)
    except UnreadableError as error:
        return Verdict(0.0, "unparsed", {name: str(error)})
    except SeveralError as error:
        return Verdict(0.0, "wrong", {name: str(error)})
    return Verdict(float(right), "solved" if right else "wrong", {name: words})


__all__ = [
    "PLAIN", "SeveralError", "UnreadableError", "either", "grade", "normalised", "read_json", "value_of",
]  # fmt: skip
