"""Chains tell the truth: every equation in them holds, whatever the format, and they end in the answer."""

from __future__ import annotations

import math
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks import TAUGHT, chains

NUMBER = re.compile(r"-?\d+")
EXPRESSION = re.compile(r"-?\d+(?:[-+*]\d+)*")
DIVISION = re.compile(r"(\d+)/(\d+)")


def value(expression: str) -> int:
    assert EXPRESSION.fullmatch(expression), expression
    return int(eval(expression, {"__builtins__": {}}))  # noqa: S307 - digits and signs only, as just checked


def check_equation(word: str, slips: bool) -> None:
    """`a=b+c=d` says a = b and b + c = d; `:r` behind a total is its last digit, behind a quotient the remainder."""
    word, _, tail = word.partition(":")
    left, *rest = word.split("=")
    if division := DIVISION.fullmatch(left):
        over, under = map(int, division.groups())
        (said,) = map(int, rest)
        assert abs(said - over // under) <= int(slips), word
        if tail:
            assert (said, int(tail)) == divmod(over, under), word
        return
    for right in rest:
        shown = NUMBER.match(right)
        assert shown, word
        assert value(left) == int(shown[0]), word
        left = right
    if tail:
        assert int(tail) == value(left) % 10, word


def check(chain: str, answer: int, slips: bool = False) -> int:
    """Every word with a "=" is true; returns how many there were."""
    lines = chain.split("\n")
    assert lines[-1] == str(answer)
    equations = [word for line in lines for word in line.split() if "=" in word]
    for word in equations:
        check_equation(word, slips)
    return len(equations)


numbers = st.integers(0, 9999) | st.integers(0, 10**9)


@settings(deadline=None, max_examples=300)
@given(st.lists(st.tuples(numbers, st.sampled_from([1, -1])), min_size=1, max_size=7))
def test_sums(terms: list[tuple[int, int]]) -> None:
    operands, signs = [n for n, _ in terms], [1, *(s for _, s in terms[1:])]
    answer = sum(n * s for n, s in zip(operands, signs, strict=True))
    chain = chains.chain_sum(operands, signs)
    columns = max(len(str(n)) for n in operands)
    assert check(chain, answer) == columns * (len(terms) - 1)  # one step per digit of every further term
    for line in chain.split("\n"):
        # what is so far and what is left, together, are the answer at every round
        if match := re.fullmatch(r"(-?\d+)\|(\d+)((?: [-+] \d+)*)", line):
            top, places, left = match.groups()
            so_far = int(top) * 10 ** len(places) + int(places)
            assert so_far + sum(int(x.replace(" ", "")) for x in re.findall(r"[-+] \d+", left)) == answer


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_products(a: int, b: int) -> None:
    assert check(chains.products(a, b), a * b) == len(str(a)) * len(str(b))


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 10**5), st.integers(1, 10**5), st.none() | st.integers(0, 1000))
def test_gcd(a: int, b: int, seed: int | None) -> None:
    chain = chains.gcd(a, b, None if seed is None else Random(seed))
    check(chain, math.gcd(a, b), slips=seed is not None)


def test_slips_do_happen_and_are_mended() -> None:
    """A wrong quotient stands in some chains written with a generator, and in none written without."""

    def wrong(chain: str) -> int:
        return sum(
            abs(int(over) // int(under) - int(said)) for over, under, said in re.findall(r"(\d+)/(\d+)=(\d+)", chain)
        )

    pairs = [(a, b) for a in range(150, 900, 31) for b in range(11, 140, 17)]
    assert sum(wrong(chains.gcd(a, b, Random(a * b))) for a, b in pairs) > 5
    assert sum(wrong(chains.gcd(a, b)) for a, b in pairs) == 0


@pytest.mark.parametrize("lie", ["3+4=8", "3+4=7+1=9", "7-9=-2:7", "10/3=2:4", "10/3=5", "2*3=6+1=7:6"], ids=str)
def test_the_checker_sees_lies(lie: str) -> None:
    with pytest.raises(AssertionError):
        check_equation(lie, slips=True)


@pytest.mark.parametrize("task", TAUGHT)
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_chains_of_drawn_problems(task: str, split: str) -> None:
    for problem in TAUGHT[task].problems(split, 150, seed=3):  # type: ignore[arg-type]
        solution = TAUGHT[task].solution(problem)
        assert solution.content == problem.answer
        assert solution.reasoning is not None
        assert check(solution.reasoning, int(problem.answer), slips=True) > 0
        assert TAUGHT[task].solution(problem) == solution  # the same chain whenever it is written
