"""The three taught families: chain_sum, products, gcd.

Questions are worded, and numbers drawn, as reasoning-gym 0.1.25 does for the sets of the same names; only the default
sizes are ours. The generators are our own because training draws hundreds of thousands of problems, needs the operands
to write the chain of steps, and must not depend on an optional package.

Every size is an inclusive (low, high) range, or one number for both ends: `problems("test", 500, terms=5)`. Candidate i
of a seed is a function of (task, seed, i) alone.

Reading an answer is strict. The claim is what follows the first marker (`answer is`, `answer:`, `####`, `\\boxed{`,
`<answer>`, `=`), or the whole text where there is none, and it must hold one number: several different ones are
`unparsed`, even if the right one is among them. So "408", "-5.", "1,234", "The sum is 46." and "12 * 34 = 408" can be
right; "46 or 47" and "12 + 34 is 46" cannot. What that gives up: an answer that goes on to explain itself with numbers.
"""

from __future__ import annotations

import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from decimal import Decimal
from hashlib import blake2b
from itertools import count
from typing import Any, ClassVar, NamedTuple

from mull.tasks import chains
from mull.tasks.base import Range, Split, deal, sized, unfinished
from mull.types import Completion, Message, Outcome, Problem

TERM = re.compile(r"-? ?\d+")
MARKER = re.compile(r"####|\\boxed\{|<answer>|=|\banswer(?:\*\*)?(?: is\b|:)", re.IGNORECASE)
NUMBER = re.compile(r"[-+\u2212]?(?:(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)")


class Drawn(NamedTuple):
    question: str
    answer: int
    meta: dict[str, Any]  # size: a label to slice reports by; operands; signs


class Arithmetic(ABC):
    """What the families share. Each says how to draw numbers, how to ask, and how to write the chain."""

    name: ClassVar[str]
    about: ClassVar[str]
    sizes: ClassVar[Mapping[str, Range]]  # the ranges that training draws from

    @abstractmethod
    def draw(self, rng: random.Random, size: Mapping[str, Range]) -> Drawn: ...

    @abstractmethod
    def chain(self, problem: Problem) -> str: ...

    def problems(self, split: Split, n: int, seed: int = 0, **size: Any) -> list[Problem]:
        ranges = sized(self.name, self.sizes, size)
        dealt = deal(self.name, split, n, self._candidates(seed, ranges))
        return [
            Problem(
                task=self.name,
                id=f"{split}/{seed}/{i}/{','.join(map(str, drawn.meta['operands']))}",
                messages=(Message("user", drawn.question),),
                answer=str(drawn.answer),
                meta={"split": split, **drawn.meta},
            )
            for i, drawn in enumerate(dealt)
        ]

    def grade(self, problem: Problem, completion: Completion) -> tuple[float, Outcome]:
        if cut := unfinished(completion):
            return 0.0, cut
        answer = read_number(completion.text)
        if answer is None:
            return 0.0, "unparsed"
        return (1.0, "solved") if answer == int(problem.answer) else (0.0, "wrong")

    def solution(self, problem: Problem) -> Message:
        return Message("assistant", problem.answer, reasoning=self.chain(problem))

    def _candidates(self, seed: int, size: Mapping[str, Range]) -> Iterator[tuple[str, Drawn]]:
        for i in count():
            # not hash(): Python salts it anew in every process
            state = blake2b(f"{self.name}/{seed}/{i}".encode(), digest_size=8).digest()
            drawn = self.draw(random.Random(int.from_bytes(state, "big")), size)
            yield normalised(drawn.question), drawn


class ChainSum(Arithmetic):
    name = "chain_sum"
    about = "sums of 2-4 terms of up to 3 digits, + and -"
    sizes: ClassVar = {"terms": (2, 4), "digits": (1, 3)}

    def draw(self, rng: random.Random, size: Mapping[str, Range]) -> Drawn:
        """All terms of a sum have the same number of digits, as in reasoning-gym."""
        terms, digits = rng.randint(*size["terms"]), rng.randint(*size["digits"])
        numbers = [number(rng, digits) for _ in range(terms)]
        signs = [1] + [rng.choice((1, -1)) for _ in range(terms - 1)]
        return self.drawn(numbers, signs, digits)

    @staticmethod
    def drawn(numbers: list[int], signs: list[int], digits: int) -> Drawn:
        expression = str(numbers[0])
        for n, sign in zip(numbers[1:], signs[1:], strict=True):
            expression += f" + {n}" if sign > 0 else f" - {n}"
        return Drawn(
            f"State the final answer to the following arithmetic problem: {expression} =",
            sum(n * sign for n, sign in zip(numbers, signs, strict=True)),
            {"size": f"{len(numbers)} terms x {plural(digits)}", "operands": numbers, "signs": signs},
        )

    def chain(self, problem: Problem) -> str:
        return chains.chain_sum(problem.meta["operands"], problem.meta["signs"])


class Products(Arithmetic):
    name = "products"
    about = "products of a number of up to 3 digits and one of up to 2"
    sizes: ClassVar = {"first": (1, 3), "second": (1, 2)}

    def draw(self, rng: random.Random, size: Mapping[str, Range]) -> Drawn:
        """The two factors' digits are drawn apart; reasoning-gym gives both the same number."""
        first, second = rng.randint(*size["first"]), rng.randint(*size["second"])
        return self.drawn(number(rng, first), number(rng, second))

    @staticmethod
    def drawn(a: int, b: int) -> Drawn:
        return Drawn(
            f"Solve the following multiplication: {a} * {b}. Give only the result as your final answer.",
            a * b,
            {"size": f"{len(str(a))} x {plural(len(str(b)))}", "operands": [a, b]},
        )

    def chain(self, problem: Problem) -> str:
        return chains.products(*problem.meta["operands"])


class Gcd(Arithmetic):
    name = "gcd"
    about = "greatest common divisor of two numbers from 1 to 999"
    sizes: ClassVar = {"values": (1, 999)}

    def draw(self, rng: random.Random, size: Mapping[str, Range]) -> Drawn:
        """Up to three tries for a divisor above 1, as in reasoning-gym: about three in four have one."""
        a = b = 1
        for _ in range(3):
            a, b = rng.randint(*size["values"]), rng.randint(*size["values"])
            if math.gcd(a, b) > 1:
                break
        return self.drawn(a, b)

    @staticmethod
    def drawn(a: int, b: int) -> Drawn:
        small, large = sorted((len(str(a)), len(str(b))))
        return Drawn(
            f"Find the Greatest Common Divisor (GCD) of these numbers: {a}, {b}. "
            "Give only the GCD as your final answer.",
            math.gcd(a, b),
            {"size": f"{large} and {plural(small)}", "operands": [a, b]},
        )

    def chain(self, problem: Problem) -> str:
        a, b = problem.meta["operands"]
        return chains.gcd(a, b, slips=random.Random(f"{a},{b}"))  # the same chain for a problem wherever it is written


def number(rng: random.Random, digits: int) -> int:
    """Uniform among the numbers of that many digits; 0 counts as a number of one digit."""
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def plural(digits: int) -> str:
    return f"{digits} digit" if digits == 1 else f"{digits} digits"


def normalised(question: str) -> str:
    """The same for questions that differ only in the order of their numbers: 12 * 34 and 34 * 12, 5 - 2 + 1 and
    5 + 1 - 2. The rest of the wording is fixed, so the signed numbers say everything.
    """
    return " ".join(sorted(term.replace(" ", "") for term in TERM.findall(question)))


def read_number(text: str) -> Decimal | None:
    """The one number a text claims as its answer; None where it claims none, or several. See the module's docstring."""
    marker = MARKER.search(text)
    claim = text[marker.end() :] if marker else text
    # Decimal, not int: exact as well, and a number of ten thousand digits is no error
    claimed = {Decimal(n.replace(",", "").replace("\u2212", "-")) for n in NUMBER.findall(claim)}
    return claimed.pop() if len(claimed) == 1 else None


__all__ = ["Arithmetic", "ChainSum", "Drawn", "Gcd", "Products", "Range", "normalised", "read_number"]
