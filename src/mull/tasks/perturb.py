"""Problems that nobody can have learnt by heart: published ones with other numbers and other names.

A word problem of GSM8K comes with its worked steps, `<<16-3-4=9>>`, and one of SVAMP with its equation. So its answer
can be worked out again for other numbers, in exact fractions, wherever it is certain which number of the text each
number of the steps is. Where that is in doubt there is no variant: never one whose answer might be wrong.

How it is made certain (`trace`): a number of the steps is the result of an earlier step, or stands in the text in
digits, or is fixed, because the text says so in a word (half, dozen, week, per cent) or in a form that is left alone (a
percentage, a date, a fraction, an ordinal). Where it could be several of these, they must come to the same value with
the new numbers too. What is neither is not understood, and the problem has no variant.

What keeps a variant sensible: numbers keep their order, their roundness and their decimals; hours stay under 24 a day;
results that were whole stay whole, those above zero above it; 1 stays 1, and nothing becomes 1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import combinations, pairwise
from random import Random
from typing import Any

from mull.tasks.arithmetic import Arithmetic
from mull.tasks.base import Split, Task, Verdict, verdict
from mull.tasks.data import names_of, rows
from mull.tasks.names import renamed
from mull.tasks.puzzle import Puzzle
from mull.tasks.steps import NotArithmeticError, Number, Step, amount, expression, last_line, steps_of, work_out
from mull.types import Completion, Message, Outcome, Problem, UserError

TRIES = 240  # draws of new numbers for a problem
ALL = 10**6  # more problems than any set has

MENTION = re.compile(r"(?<![\w.])\$?(\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?)(?![\d,]*\d)", re.ASCII)
# behind or before a number: what says that it is no plain amount, or one that the world knows
FIXED_BEHIND = re.compile(
    r"\s*(?:%|/|percent|per cent|(?:st|nd|rd|th)\b|:\d|(?:a\.?m|p\.?m|o'clock)\b|¢|cents?\b|x\b|-?\s*(?:legged|sided|"
    r"legs?|wheels?|eyes|arms|fingers|toes|sides|suits|quarters|dimes|nickels|pennies|degrees)\b)|\s+times\b|"
    r"\s*weeks?\s+(?:a|per|every|each|in a|of the)\s+month",
    re.IGNORECASE,
)
FIXED_BEFORE = re.compile(
    r"(?:/|:|#|-|\b(?:grade|chapter|page|number|no\.|room|day|week|month|year|level|route|in|since|by|at|until|"
    r"january|february|march|april|may|june|july|august|september|october|november|december)\s+)$",
    re.IGNORECASE,
)
MOST_OF = {"hour": 24, "day": 7, "month": 12, "minute": 60, "second": 60, "week": 52, "inch": 12, "ounce": 16}
UNIT = re.compile(r"[\s-]*(?:(?:more|other|extra|full|whole|straight|additional)\s+)?([a-z]+)", re.IGNORECASE)
UNITS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty
"""
TENS = "thirty forty fifty sixty seventy eighty ninety"
SPELT = dict(enumerate(UNITS.split())) | dict(zip(range(30, 100, 10), TENS.split(), strict=True))
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"
# other words that put a number into the steps
WORLD: dict[str, tuple[str, ...]] = {
    r"\bhal[fv]|\btwice\b|\bdouble|\bpairs?\b|\bcouples?\b|\bboth\b|\btwins?\b|\bbi-?weekly\b|\btwo\b": ("2", "1/2"),
    r"\bthird|\btriple|\bthrice\b|\btrio\b|\btriplets?\b|\byards?\b|\bfeet\b": ("3", "1/3"),
    r"\bquarter|\bquadruple|\bfourth": ("4", "1/4"), r"\bfifth|\bnickels?\b": ("5", "1/5"),
    r"\bsixth": ("6", "1/6"), r"\beighth": ("8", "1/8"), r"\btenth|\bdimes?\b|\bdecades?\b": ("10", "1/10"),
    r"\bonce\b|\bsingle\b|\banother\b|\b(?:him|her|them|my)sel": ("1",), r"\bweek": ("7", "52"),
    r"\bdozen|\byear|\bannual|\bmonth|\bfoot\b|\bfeet\b|\binch": ("12",),
    r"\bhour|\bminute|\bsecond": ("60",), r"\bday|\bdaily\b|\bhour": ("24",), r"\byear|\bannual": ("52", "365"),
    r"\bday": ("30", "365"), r"\bmonth": ("30",), r"%|\bper ?cent|\bcent|\bmeter|\bhundred": ("100", "1/100"),
    r"\bpounds?\b|\bounce": ("16",), r"\bkilo|\bgrams?\b|\bthousand|\bliter|\bmeter": ("1000",),
    r"\bscore\b": ("20",),
}  # fmt: skip
FRACTION = re.compile(r"(?<![\d/])(\d{1,3})/(\d{1,3})(?![\d/])", re.ASCII)
PERCENT = re.compile(r"(\d+(?:\.\d+)?)\s*(?:%|per ?cent)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Mention:
    """A number in the text, in digits."""

    begin: int
    end: int
    written: str
    value: Fraction
    most: int  # what it may become at most; 0 for anything


@dataclass(frozen=True, slots=True)
class Traced:
    """A problem whose answer can be worked out again."""

    text: str
    steps: tuple[Step, ...]
    gold: Fraction
    mentions: tuple[Mention, ...]  # those that may change
    still: frozenset[Fraction]  # what is fixed
    told: frozenset[Fraction]  # all that stands in the text in digits


def trace(text: str, steps: Sequence[Step], gold: Fraction, misleading: bool = False) -> Traced | None:
    """None where it is not certain what each number of the steps is, or the steps are not exact.

    `misleading`: the text may have numbers that the answer does not need. They stay.
    """
    if not steps or steps[-1].result != gold or any(isinstance(step.expression, Number) for step in steps):
        return None  # a step that only repeats a number does not say where it is from
    found, still = [*_mentions(text)], set(_fixed(text))
    free = [mention for mention, fixed in found if not fixed]
    still |= {mention.value for mention, fixed in found if fixed}
    used = {value for step in steps for value in _numbers(step)}
    if not misleading and any(one.value not in used for one in free):
        return None
    mentions = tuple(one for one in free if one.value not in still and one.value in used and one.value > 1)
    still |= {one.value for one in free} - {one.value for one in mentions}
    told = frozenset(mention.value for mention, _ in found)
    traced = Traced(text, tuple(steps), gold, mentions, frozenset(still), told)
    if not mentions or again(traced, {}) != gold:
        return None
    return traced


def _mentions(text: str) -> Iterator[tuple[Mention, bool]]:
    """(number in digits, whether it is to be left alone)."""
    for found in MENTION.finditer(text):
        value = Fraction(found[1].replace(",", ""))
        year = value.denominator == 1 and 1800 <= value <= 2100 and "," not in found[1] and not found[0].startswith("$")
        unit = UNIT.match(text, found.end())
        word = (unit[1].lower() if unit else "").rstrip("s").replace("inche", "inch")
        most = MOST_OF.get(word, 0)
        behind = FIXED_BEHIND.match(text, found.end())
        before = not found[0].startswith("$") and FIXED_BEFORE.search(text, max(0, found.start() - 12), found.start())
        mention = Mention(found.start(), found.end(), found[0], value, most if value <= most else 0)
        yield mention, bool(year or behind or before or value == most)


def _fixed(text: str) -> Iterator[Fraction]:
    """Numbers that the steps may have without digits in the text that could change."""
    for words, numbers in WORLD.items():
        if re.search(words, text, re.IGNORECASE):
            yield from map(Fraction, numbers)
    words = set(re.findall("[a-z]+", text.lower()))
    yield from (Fraction(value) for value, word in SPELT.items() if word in words)
    for place, word in enumerate(ORDINALS.split(), 1):
        if word in words:
            yield from (Fraction(place), Fraction(place - 1))
    for above, below in FRACTION.findall(text):
        if int(below):
            a, b = Fraction(above), Fraction(below)
            yield from (a / b, 1 - a / b, 1 + a / b, a, b, b - a)
    for percent in PERCENT.findall(text):
        of = Fraction(percent)
        yield from (of / 100, 1 - of / 100, 1 + of / 100, of, 100 - of, 100 + of, Fraction(100))


def _numbers(step: Step) -> list[Fraction]:
    seen = list[Fraction]()
    work_out_safely(step, lambda value: seen.append(value) or value)
    return seen


def work_out_safely(step: Step, number: Any) -> Fraction | None:
    try:
        return work_out(step.expression, number)
    except ZeroDivisionError:
        return None


class UncertainError(ValueError):
    """A number of the steps that could be several things, which come to different values, or nothing that is known."""


def again(traced: Traced, new: Mapping[Fraction, Fraction]) -> Fraction | None:
    """The answer, with the numbers of the text replaced; None where a step is uncertain, or out of its kind."""
    values = {one.value for one in traced.mentions}
    known: list[tuple[Fraction, Fraction]] = []  # (result of an earlier step, what it is now)

    def now(value: Fraction) -> Fraction:
        options = {result for before, result in known if before == value}
        if value in values:
            options.add(new.get(value, value))
        if value in traced.still:
            options.add(value)
        if len(options) != 1:
            raise UncertainError
        return options.pop()

    for step in traced.steps:
        try:
            exact, result = work_out_safely(step, lambda value: value), work_out(step.expression, now)
        except (UncertainError, ZeroDivisionError):
            return None
        if exact != step.result or not _of_a_kind(step.result, result):
            return None
        known.append((step.result, result))
    told = [(value, new.get(value, value)) for value in traced.told]
    return known[-1][1] if _ordered([*known, *told]) and _summed(told) else None


def _of_a_kind(old: Fraction, new: Fraction) -> bool:
    """Whole where it was, to the cent where it was, positive where it was."""
    if old.denominator == 1 and new.denominator != 1:
        return False
    if 100 % old.denominator == 0 and 100 % new.denominator != 0:
        return False
    return (old > 0) == (new > 0) and (old == 0) == (new == 0) and (old == 1) == (new == 1) and abs(new) < 10**9


def _ordered(pairs: Sequence[tuple[Fraction, Fraction]]) -> bool:
    """Whether all are in the order in which they were: what was more is more, and what was equal is equal."""
    pairs = sorted(pairs)
    return all((a < b) == (x < y) and x <= y for (a, x), (b, y) in pairwise(pairs))


def _summed(pairs: Sequence[tuple[Fraction, Fraction]]) -> bool:
    """Whether any two are as before together more than a third, as much, or less: nobody loses more than there is."""
    return all(
        (a + b > c) == (x + y > z) and (a + b == c) == (x + y == z)
        for (a, x), (b, y) in combinations(pairs, 2) for c, z in pairs
    )  # fmt: skip


def drawn(traced: Traced, rng: Random) -> tuple[str, Fraction] | None:
    """(the text with other numbers and names, its answer); None where no draw was sensible."""
    values = sorted({one.value for one in traced.mentions})
    for attempt in range(TRIES):
        # all of them and far away, where that can be; then some of them, and nearer
        chosen = values if attempt % 2 == 0 else [value for value in values if rng.random() < 0.5]
        new = {value: _like(value, traced, rng, near=attempt >= TRIES // 4) for value in chosen}
        if not new or any(value == now for value, now in new.items()):
            continue
        answer = again(traced, new)
        if answer is not None and answer != traced.gold and 100 % answer.denominator == 0:
            return renamed(_replaced(traced, new), rng), answer
    return None


def _like(value: Fraction, traced: Traced, rng: Random, near: bool) -> Fraction:
    """A number of the same roundness and number of decimals, between half and double, or three quarters and 4/3."""
    written = next(one.written for one in traced.mentions if one.value == value)
    places = len(written.partition(".")[2])
    scaled = int(value * 10**places)
    step = next((step for step in (1000, 500, 100, 50, 25, 10, 5) if scaled % step == 0 and scaled >= 3 * step), 1)
    caps = [one.most for one in traced.mentions if one.value == value and one.most]
    low, high = (scaled * 3 // 4, scaled * 4 // 3 + 2) if near else (scaled // 2, max(scaled * 2, 9))
    low = max(2, low)
    if caps:
        high = min(high, (min(caps) - 1) * 10**places)
    low, high = -(-low // step), high // step
    return Fraction(rng.randint(low, max(low, high)) * step, 10**places)


def _replaced(traced: Traced, new: Mapping[Fraction, Fraction]) -> str:
    text = traced.text
    for one in reversed(traced.mentions):
        if one.value in new:
            text = text[: one.begin] + _written(new[one.value], one.written) + text[one.end :]
    return text


def _written(value: Fraction, like: str) -> str:
    places = len(like.partition(".")[2])
    digits = f"{float(value):,.{places}f}" if value < 10**12 else str(value)
    plain = "," not in like and value < 10_000
    return ("$" if like.startswith("$") else "") + (digits.replace(",", "") if plain else digits)


def traces(name: str) -> dict[str, Traced]:
    """The problems of a set (of data.SOURCES) that can be worked out again, by their ids."""
    found = {at: READERS[name](row) for at, row in zip(names_of(name), rows(name), strict=True)}
    return {at: traced for at, traced in found.items() if traced is not None}


def _worked(row: Mapping[str, Any]) -> Traced | None:
    try:
        return trace(row["question"].strip(), steps_of(row["answer"]), last_line(row["answer"]))
    except NotArithmeticError:
        return None


def _equation(row: Mapping[str, Any]) -> Traced | None:
    text = f"{row['Body'].strip().rstrip('.')}. {row['Question'].strip()}"
    try:
        gold = amount(str(row["Answer"]))
        return trace(text, [Step(expression(row["Equation"]), gold)], gold, misleading=True)
    except NotArithmeticError:
        return None


READERS = {"gsm8k": _worked, "gsm8k_train": _worked, "svamp": _equation}  # by name in data.SOURCES
SETS = {"gsm8k": {"test": "gsm8k", "train": "gsm8k_train"}, "svamp": {"test": "svamp"}}


def variants(task: Task, problems: Sequence[Problem], seed: int = 0) -> list[Problem]:
    """For each problem that has one, a variant; its `meta["of"]` is the original's id. Those of a seed are the same.

    Raises UserError for a set whose answers cannot be worked out again.
    """
    if not problems:
        return []
    split = problems[0].meta.get("split", "test")
    if isinstance(task, Arithmetic | Puzzle):  # these make problems: others by another seed
        others = task.problems(split, len(problems), seed + 1)
        pairs = zip(problems, others, strict=False)
        return [replace(other, meta={**other.meta, "of": problem.id}) for problem, other in pairs]
    if task.name not in SETS:
        raise UserError(f"{task.name} has no fresh variants: its answers cannot be worked out again for other numbers.")
    name = SETS[task.name][split]
    known = dict(zip(names_of(name), rows(name), strict=True))
    made = [_variant(problem, READERS[name](known[problem.id]), seed) for problem in problems if problem.id in known]
    return [variant for variant in made if variant is not None]


def _variant(problem: Problem, traced: Traced | None, seed: int) -> Problem | None:
    found = traced and drawn(traced, Random(f"{seed}/{problem.id}"))
    content = problem.messages[-1].content
    if not traced or not found or traced.text not in content:
        return None
    messages = (Message("user", content.replace(traced.text, found[0])),)
    meta = {**problem.meta, "of": problem.id}
    return replace(problem, id=f"{problem.id}/{seed}", messages=messages, answer=_plain(found[1]), meta=meta)


def _plain(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.2f}"


FRESH = "-fresh"  # behind a set's name


class Fresh:
    """A set's variants as a Task, graded as the set is: the gap to the set itself is what a model knew by heart.

    By one seed both deal the same problems first, so that also of a few most are asked in both ways.
    """

    def __init__(self, of: Task) -> None:
        self.name = of.name + FRESH
        self.about = f"{of.name} with other numbers and names, so that nothing learnt by heart helps"
        self._of = of

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        made = variants(self._of, self._of.problems(split, ALL, seed, **size), seed)
        return [replace(problem, task=self.name) for problem in made[:n]]

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        return self._of.grade(problem, completion)

    def judge(self, problem: Problem, completion: Completion) -> Verdict:
        return verdict(self._of, problem, completion)

    def gold(self, problem: Problem) -> str:
        return f"\\boxed{{{problem.answer}}}"


__all__ = ["FRESH", "Fresh", "Mention", "Traced", "again", "drawn", "trace", "traces", "variants"]
