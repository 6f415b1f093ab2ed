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
from mull.tasks.exact import compare
from mull.tasks.results import boxes, result

END = 20_000  # letters at the end of an answer in which its result is looked for
LONGEST = 400  # letters of a number; no gold is longer
POWER = 400  # of ten in a number
DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
NUMBER = re.compile(
    rf"(?<![\w.])[-+]?\s?(?:\d{{1,9}} \d{{1,9}}/\d{{1,9}}|{DIGITS}(?:[eE][-+]?\d{{1,4}})?(?:\s?/\s?{DIGITS})?)\s?%?",
    re.ASCII,
)
SPACED = re.compile(r"(?<![\d.])\d{1,3}(?:[ \u2009\u202f]\d{3})+(?![\d/])", re.ASCII)  # 70 000
SCALES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}  # powers of ten
SCALE = re.compile(rf"\s*({'|'.join(SCALES)})s?\b", re.IGNORECASE)
ONE_UNIT = r"(?:[^\W\d_]{2,}|(?<![^\W_])[mgshlLNJWVA](?![^\W\d_])|(?<=\d)[mgshlLNJWVA](?![^\W\d_]))"  # 5 x is no unit
UNIT = re.compile(rf"\s*(?:{ONE_UNIT}(?:[\s/^.]{{1,2}}{ONE_UNIT}){{0,3}}(?:[²³]|\^[23])?)?")
NO_UNIT = re.compile(  # words behind a number that make it another one, or none
    r"(?<![^\W\d])(?:(?:hundred|thousand|million|billion|trillion|dozen|lakh|crore)(?:th)?s?|hal(?:f|ves)|(?:third|"
    r"fourth|fifth|sixth|seventh|eighth|ninth|tenth)s?|th|st|nd|rd|k|pi|[xyzn]{1,3}|e|bn|mn|mln|mil|squared|cubed|"
    r"factorial|times|plus|minus|over|divided|multiplied|power|to|or|at|mod|is|are|was|were|isn't|and|than|if|unless|"
    r"except|but|maybe|perhaps|impossible|wrong|incorrect|false|not|no)\b",
    re.IGNORECASE,
)
GOES_ON = ("is", "are", "was", "were", "and", "but")  # the sentence does, behind a number: "So 18 is it"
BEFORE = re.compile(  # words right before a number that make it another one, or none
    r"\b(?:no|minus|negative|least|most|more|less|fewer|greater|larger|smaller|over|under|above|below|than|up to|twice|"
    r"double|triple|half|times|root|plus|without|except|between|sqrt|log)\b(?:\s+[a-z]+)?\s*$",
    re.IGNORECASE,
)
DENIED = re.compile(r"\b(?:not|never|cannot|nor|neither)\b|n't\b", re.IGNORECASE)
REJECTED = re.compile(r"\b(?:is|are|was|were|be)\s+(?:\w+\s+)?(?:not|wrong|incorrect|false)\b|n't\b", re.IGNORECASE)
PART = re.compile(r"[:;=]|[.,!?]\s|\bbut\b", re.IGNORECASE)  # ends what words belong to a number
TOUCHING_BEFORE = re.compile(r"(?:[-+*/^<>≤≥×·⋅÷±√_{\\|]|[^\W_]\(|\\[a-zA-Z]+|\d)\s*$")
TOUCHING_BEHIND = re.compile(r"\s*(?:[*/^+×·⋅÷±<>=≤≥√_\\{}|]|[-–—]\s*[\d\\(])|[-–—(]")
ASIDE = re.compile(
    r"\(|\b(?:since|because|as|not|rather|instead|which|for|after|every|per|from|on|in(?! base))\b", re.IGNORECASE
)
PARENTHESIS = re.compile(r"\([^()]*\)")
MARKER = re.compile(r"^\s*\d{1,2}[.)]\s+(?=\S)")  # of a list
EQUALS = re.compile(r"(?<![<>!≤≥=])=")
WORD = re.compile(r"(?<!\\)\b[^\W\d_]{2,}(?!\s*[({])")
HEDGE = re.compile(r"[,/;+*^×·]|\b(?:or|and|to|not|maybe|perhaps|possibly|either)\b|^\s*[-–—]\s*$", re.IGNORECASE)
SCRIPTS = {ord(sign): f"^{i}" for i, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")} | {ord("₀") + i: f"_{i}" for i in range(10)}
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]{0,400})\}\s*\{([^{}]{0,400})\}")
WRAPPED = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]{0,400})\}")
FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)
LETTER = re.compile(r"\W{0,4}([A-J])(?:\W{0,4}$|[).:,\]]|\s*[-–—]\s)")
LETTER_ENDS = r"(?=\W|$)(?!['’]|\s+(?!because|since|as|which|and|or|is (?:right|correct|the))[a-z])"
LETTER_SAID = re.compile(rf"\W{{0,4}}([A-J]){LETTER_ENDS}")
LETTER_CHOSEN = re.compile(rf"\b(?i:option|choice|letter|is|choose|pick|select|so)\b\W{{1,4}}([A-J]){LETTER_ENDS}")
OTHER = re.compile(r"(?:\b(?:or|and)\b|[,/])\W{0,3}([A-J])\b(?!\s?[a-z])")


class UnreadableError(ValueError):
    """An answer without a result of the kind that is asked for. The message says what is missing."""


class WrongError(ValueError):
    """An answer with several results, or one that says only what the result is not."""


def number(golds: Sequence[str], answer: str) -> tuple[bool, str]:
    """Equal as numbers, exactly. A currency sign, a unit behind and the sign for per cent make no difference.

    What is stated has to be a number: the gold inside a larger expression, or with "million" behind, is another one.
    """
    line, stated = _line(answer)
    said = EQUALS.split(line)[-1].strip()
    if value_of(said) is None:
        if not WORD.search(said):  # an expression
            told = [compare(gold, said) for gold in golds]
            if all(one.equal is None for one in told):
                raise UnreadableError(told[0].words[:200] if NUMBER.search(said) else "no number")
            found = next((one for one in told if one.equal), told[0])
            return bool(found.equal), found.words
        said = _in_words(said, stated)
    return _compared(said, golds, lambda gold: _same_number(gold, said))


def _same_number(gold: str, said: str) -> bool:
    """By value; 50 is 50 % as well, as one writes where a percentage was asked for. Of 1 and less, it is the share."""
    value, wanted = value_of(said), value_of(gold)
    if value is None or wanted is None:
        return False
    share, number = (wanted, value) if "%" in gold else (value, wanted)
    return value == wanted or (("%" in gold) != ("%" in said) and number == 100 * share and abs(number) > 1)


def _line(answer: str) -> tuple[str, bool]:
    """(what an answer states, or its last line with a number, in simple writing; whether it is stated)."""
    said = result(answer)
    if said is not None:
        end = answer[-END:]
        if (box := boxes(end)) and DENIED.search(PART.split(end[max(0, box[1] - 80) : box[1]])[-1]):
            raise WrongError("it says what the answer is not")
        return _simple(said), True
    for line in reversed(answer[-END:].splitlines()):
        plain = MARKER.sub("", _simple(line))
        if NUMBER.search(plain):
            return plain, False
    raise UnreadableError("no number")


def _in_words(line: str, stated: bool) -> str:
    """The number that words state: the first of a result, the last of a line that is none. It has to stand alone.

    Raises UnreadableError where there is none, WrongError for several and for what is denied.
    """
    found = [*NUMBER.finditer(line)]
    if stated and found:
        aside = ASIDE.search(line, found[0].end())
        found = [one for one in found if not aside or one.start() < aside.start()][:2]
    elif found and (outside := PARENTHESIS.sub(" ", line)) and NUMBER.search(outside):
        line, found = outside, [*NUMBER.finditer(outside)][-2:]
    if not found:
        raise UnreadableError("no number")
    if len(found) == 2 and (stated or HEDGE.search(line[found[0].end() : found[1].start()])):
        raise WrongError(f"several numbers: {line[found[0].start() : found[1].end()].strip()[:80]}")
    one = found[0 if stated else -1]
    said = one[0].strip()
    before, behind = PART.split(line[: one.start()])[-1], line[one.start() + len(one[0].rstrip()) :]
    if scale := SCALE.match(behind):
        said, behind = said + scale[0], behind[scale.end() :]
    if BEFORE.search(before) or DENIED.search(before) or REJECTED.search(PART.split(behind)[0]):
        raise WrongError(f"it does not say that it is {said[:40]}: {line.strip()[:80]}")
    word = re.match(r"\s*([^\W\d_]*)", behind)
    assert word
    joined = behind[:1].isalpha() and not UNIT.fullmatch(f"5{word[1]}", 1)
    other = NO_UNIT.fullmatch(word[1]) and word[1].lower() not in GOES_ON
    if joined or other or TOUCHING_BEFORE.search(before) or TOUCHING_BEHIND.match(behind):
        raise UnreadableError(f"{said[:40]} is part of something else: {line.strip()[:80]}")
    return said


def value_of(text: str) -> Fraction | None:
    """The exact value of a text that is a number, with or without a unit behind; None where it is none."""
    if len(text) > LONGEST:
        return None
    plain = _simple(text).strip().rstrip(".").strip()
    plain = SPACED.sub(lambda spaced: re.sub(r"\s", "", spaced[0]), plain)
    found = NUMBER.match(plain)
    if not found:
        return None
    scale = SCALE.match(plain, found.end())
    end = scale.end() if scale else found.end()
    if not UNIT.fullmatch(plain, end) or NO_UNIT.search(plain, end):
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
    value = value / 100 if found[0].rstrip().endswith("%") else value
    return value * 10 ** SCALES[scale[1].lower()] if scale else value


def _simple(text: str) -> str:
    """LaTeX's and Unicode's ways to write a number as everybody's, without markup and currency."""
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text.translate(SCRIPTS))
    text = unicodedata.normalize("NFKC", text).replace("⁄", "/")
    text = WRAPPED.sub(r" \1", FRACTION.sub(r" \1/\2", text)).replace("\\%", "%").replace("{,}", ",")
    return re.sub(r"<\|[^<>|]{1,40}\|>|\\[,;!()\[\] ]|\*\*|\\?[$`£€¥]|\^\s*\{?\\circ\}?", "", text).replace("−", "-")


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
        chosen = [*LETTER_CHOSEN.finditer(plain)] if said is None else []
        if chosen and DENIED.search(plain, 0, chosen[-1].start()):
            raise UnreadableError("it says what the answer is not")
        if found := form.match(plain) or (chosen[-1] if chosen else None):
            if others := sorted(set(OTHER.findall(plain)) - {found[1]}):
                raise WrongError(f"several letters: {found[1]} and {', '.join(others)}")
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
    """Equal as JSON: keys in any order, numbers by value, true is not 1. It may stand in a fence or between words."""
    found = read_json(answer)
    return _compared(json.dumps(found, default=str)[:80], golds, lambda gold: _equal(found, _loads(gold)))


def read_json(answer: str) -> Any:
    """The JSON of an answer. Raises UnreadableError."""
    end = answer.strip()[-END:]
    first = min((at for at in (end.find("{"), end.find("[")) if at >= 0), default=len(end))
    for place in (end, *FENCED.findall(end)[-1:], _last_line(end)):
        try:
            return _loads(place)
        except (ValueError, RecursionError, InvalidOperation):
            continue
    try:
        value, behind = JSON.raw_decode(end, first)
    except (ValueError, RecursionError, InvalidOperation):
        raise UnreadableError("no JSON") from None
    if re.search(r"[{\[]", end[behind:]) or DENIED.search(end[:first].rpartition("\n")[2]):
        raise UnreadableError("no single JSON")
    return value


def _no_number(text: str) -> None:
    raise ValueError(text)


JSON = json.JSONDecoder(parse_float=Decimal, parse_constant=_no_number)


def _loads(text: str) -> Any:
    return JSON.decode(text)


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
    except WrongError as error:
        return Verdict(0.0, "wrong", {name: str(error)})
    return Verdict(float(right), "solved" if right else "wrong", {name: words})


__all__ = [
    "PLAIN", "UnreadableError", "WrongError", "either", "grade", "normalised", "read_json", "value_of",
]  # fmt: skip
