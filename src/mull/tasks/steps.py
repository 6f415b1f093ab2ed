"""Arithmetic that sets write down themselves: GSM8K's worked steps, `<<16-3-4=9>>`, and SVAMP's equations.

Read into a tree and worked out in exact fractions, so that a step can be checked, and done again with other numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

STEP = re.compile(r"<<([^<>]*)=([^<>=]*)>>")
TOKEN = re.compile(r"\s*(?:(\d[\d,]*\.?\d*|\.\d+)(%?)|([-+*/()]))")
LONGEST = 200  # letters of an expression; the longest in GSM8K has 60
DEEPEST = 20  # brackets in one another


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction


@dataclass(frozen=True, slots=True)
class Operation:
    sign: str
    left: Expression
    right: Expression


Expression = Number | Operation


@dataclass(frozen=True, slots=True)
class Step:
    expression: Expression
    result: Fraction  # as it is written, whether or not the expression comes to it


class NotArithmeticError(ValueError):
    """A text that is no expression of numbers, + - * / and brackets."""


def amount(text: str) -> Fraction:
    """The value of a number as it is written, commas and currency included. Raises NotArithmeticError for others."""
    plain = text.strip().replace("$", "").replace(",", "").rstrip(".")
    share = plain.endswith("%")
    if len(plain) > LONGEST or not re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:/\d*[1-9]\d*)?%?", plain, re.ASCII):
        raise NotArithmeticError(text)
    above, _, below = plain.rstrip("%").partition("/")
    return Fraction(above) / int(below or 1) / (100 if share else 1)


def expression(text: str) -> Expression:
    """Raises NotArithmeticError."""
    tokens = _tokens(text)
    tree, at = _sum(tokens, 0, 0)
    if at != len(tokens):
        raise NotArithmeticError(text)
    return tree


def _tokens(text: str) -> list[str | Fraction]:
    if len(text) > LONGEST:
        raise NotArithmeticError(text[:LONGEST])
    tokens: list[str | Fraction] = []
    at, text = 0, text.replace("$", "").strip()
    while at < len(text):
        found = TOKEN.match(text, at)
        if not found:
            raise NotArithmeticError(text)
        number, share, sign = found.groups()
        tokens.append(sign or amount(number + share))
        at = found.end()
    return tokens


def _sum(tokens: list[str | Fraction], at: int, depth: int) -> tuple[Expression, int]:
    return _chain(tokens, at, depth, ("+", "-"), _product)


def _product(tokens: list[str | Fraction], at: int, depth: int) -> tuple[Expression, int]:
    return _chain(tokens, at, depth, ("*", "/"), _single)


def _chain(
    tokens: list[str | Fraction], at: int, depth: int, signs: tuple[str, str],
    part: Callable[[list[str | Fraction], int, int], tuple[Expression, int]],
) -> tuple[Expression, int]:  # fmt: skip
    left, at = part(tokens, at, depth)
    while at < len(tokens) and tokens[at] in signs:
        sign = str(tokens[at])
        right, at = part(tokens, at + 1, depth)
        left = Operation(sign, left, right)
    return left, at


def _single(tokens: list[str | Fraction], at: int, depth: int) -> tuple[Expression, int]:
    token = tokens[at] if at < len(tokens) else ""
    if isinstance(token, Fraction):
        return Number(token), at + 1
    if token == "(" and depth < DEEPEST:
        inner, at = _sum(tokens, at + 1, depth + 1)
        if at < len(tokens) and tokens[at] == ")":
            return inner, at + 1
    if token == "-" and at + 1 < len(tokens) and isinstance(tokens[at + 1], Fraction):
        inner, at = _single(tokens, at + 1, depth)
        return Operation("-", Number(Fraction(0)), inner), at
    raise NotArithmeticError("not a number or a bracket where one is needed")


def work_out(tree: Expression, number: Callable[[Fraction], Fraction] = lambda value: value) -> Fraction:
    """The value of an expression, each of its numbers first put through `number`. Raises ZeroDivisionError."""
    if isinstance(tree, Number):
        return number(tree.value)
    left, right = work_out(tree.left, number), work_out(tree.right, number)
    match tree.sign:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    return left / right


def steps_of(solution: str) -> list[Step]:
    """The steps of one of GSM8K's solutions. Raises NotArithmeticError for one that holds something else."""
    return [Step(expression(before), amount(after)) for before, after in STEP.findall(solution)]


def last_line(solution: str) -> Fraction:
    """The number behind ####. Raises NotArithmeticError where there is none."""
    return amount(solution.rpartition("####")[2])


__all__ = [
    "Expression", "NotArithmeticError", "Number", "Operation", "Step", "amount", "expression", "last_line",
    "steps_of", "work_out",
]  # fmt: skip
