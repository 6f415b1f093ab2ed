"""Our own verifier on the corpus (math_pairs.py), and on pairs that are made up."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from math_pairs import DIFFERENT, EQUAL, pairs

from mull.tasks.exact import compare
from mull.tasks.results import result


def solved(gold: str, text: str) -> bool:
    found = result(text)
    return found is not None and compare(gold, found).equal is True


def test_what_says_the_same_is_accepted() -> None:
    corpus = pairs(EQUAL)
    rejected = [pair for pair in corpus if not solved(*pair)]
    assert len(corpus) >= 400
    assert len(rejected) <= len(corpus) / 100, f"{len(rejected)} of {len(corpus)} rejected: {rejected}"


def test_attacks_are_not() -> None:
    corpus = pairs(DIFFERENT)
    accepted = [pair for pair in corpus if solved(*pair)]
    assert len(corpus) >= 500
    assert not accepted, f"{len(accepted)} of {len(corpus)} accepted: {accepted}"


def test_answers_to_other_questions_are_not() -> None:
    """Each gold answer of the corpus against each other line's."""
    golds = [line.split(" ;; ")[0].removeprefix("> ") for line in EQUAL.strip().splitlines()]
    said = {(a, b) for a in golds for b in golds if a != b and compare(a, b).equal}
    known = {frozenset(pair) for pair in (("50", "50\\%"), ("1/2", "50\\%"))}
    assert {frozenset(pair) for pair in said} <= known


def test_it_says_what_it_compared() -> None:
    assert compare("18", "18.0").words == "18.0 = 18"
    assert compare("18", "19").words == "19 is not 18"
    assert compare("18", "1/0").words == "1/0 cannot be told from 18 (division by zero)"
    assert compare("9^{9^9}", "3").words == "3 cannot be told from 9^{9^9}"
    assert len(compare("1" * 500, "2" * 500).words) < 120


@pytest.mark.parametrize(
    "answer",
    ["AB = 8", "|AB| = 8", "f(3) = 8", "P(X) = 8", "a+b = 8", r"n_{\min} = 8", r"\angle ABC = 8^\circ", "B) 8",
     "a+b = 3+5 = 8", r"\color{red}8", r"\text{Answer: }8", r"\text{\$}8"],
)  # fmt: skip
def test_a_value_with_its_name(answer: str) -> None:
    assert compare("8", answer).equal is True
    assert compare("9", answer).equal is not True


@pytest.mark.parametrize(
    "answer", ["2x = 8", "x^2 = 8", r"\cos x = 8", "cos(x) = 8", "not = 8", "3+4 = 8", "A = 7 = 8"]
)
def test_an_equation_to_solve_is_no_value_with_a_name(answer: str) -> None:
    assert compare("8", answer).equal is not True


def test_digits_that_repeat_and_spaces_between_thousands() -> None:
    assert compare("1/6", r"0.1\overline{6}").equal is True
    assert compare("1/6", r"0.\overline{16}").equal is False
    assert compare("41000", "41 000").equal is True


FORMS = (
    r"\frac{%d}{%d}",
    r"\dfrac{%d}{%d}",
    "%d/%d",
    r"\left(\frac{%d}{%d}\right)",
    r"x = \frac{%d}{%d}",
    r"$\frac{%d}{%d}$",
    r"\frac{%d}{%d}\text{ units}",
    r"{%d}/{%d}",
)
numbers = st.fractions(min_value=-10_000, max_value=10_000, max_denominator=400)
forms = st.sampled_from(FORMS)


def written(value: Fraction, form: str, times: int = 1) -> str:
    return form % (value.numerator * times, value.denominator * times)


@given(numbers, forms, forms, st.integers(1, 9))
def test_one_number_in_two_writings(value: Fraction, a: str, b: str, times: int) -> None:
    assert compare(written(value, a), written(value, b, times)).equal is True


@given(numbers, numbers, forms, forms)
def test_two_numbers_in_any_writing(value: Fraction, other: Fraction, a: str, b: str) -> None:
    assert compare(written(value, a), written(other, b)).equal is (value == other)


@given(st.integers(-(10**12), 10**12), st.integers(1, 10**6))
def test_whole_numbers_with_commas_signs_and_money(n: int, off: int) -> None:
    for text in (f"{n:,}", f"{n}.00", f"\\${n}" if n >= 0 else f"{n}", f"{n}\\text{{ apples}}", f"n={n}"):
        assert compare(str(n), text).equal is True
        assert compare(str(n + off), text).equal is False


@given(st.integers(-99, 99), st.integers(1, 99), st.integers(2, 99), st.integers(-3, 3).filter(bool))
def test_radicals(a: int, b: int, c: int, off: int) -> None:
    gold = rf"{a}+{b}\sqrt{{{c}}}"
    assert compare(gold, rf"\sqrt{{{b * b * c}}}+{a}").equal is True
    assert compare(gold, rf"{a}+\frac{{{b * c}}}{{\sqrt{{{c}}}}}").equal is True
    assert compare(gold, rf"{a + off}+{b}\sqrt{{{c}}}").equal is not True
    assert compare(gold, rf"{a}-{b}\sqrt{{{c}}}").equal is not True
    assert compare(gold, f"{a + b * c**0.5!r}").equal is (round(c**0.5) ** 2 == c)  # never by its decimals alone


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=6, unique=True), st.randoms(use_true_random=False))
def test_lists_in_any_order_tuples_in_theirs(values: list[int], random: object) -> None:
    turned = values[1:] + values[:1]
    text, other = ", ".join(map(str, values)), ", ".join(map(str, turned))
    assert compare(text, other).equal is True
    assert compare(rf"\{{{text}\}}", rf"\{{{other}\}}").equal is True
    assert compare(f"({text})", f"({other})").equal is False
    assert compare(text, ", ".join(map(str, values[1:]))).equal is False
    assert compare(text, f"{text}, 51").equal is False


@given(st.integers(-50, 50), st.integers(1, 50), st.sampled_from("(["), st.sampled_from(")]"))
def test_intervals_and_their_inequalities(low: int, size: int, left: str, right: str) -> None:
    gold = f"{left}{low},{low + size}{right}"
    signs = {"(": "<", ")": "<", "[": r"\le", "]": r"\le"}
    assert compare(gold, rf"{low}{signs[left]} x{signs[right]} {low + size}").equal is True
    assert compare(gold, rf"x\in{gold}").equal is True
    flipped = {"(": "[", "[": "("}[left]
    assert compare(gold, f"{flipped}{low},{low + size}{right}").equal is False
    assert compare(gold, f"{left}{low},{low + size + 1}{right}").equal is False


@given(st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9), st.integers(-9, 9).filter(bool))
def test_lines(a: int, b: int, c: int, k: int) -> None:
    if not a and not b:
        return
    gold = f"{a}x+({b})y={c}"
    assert compare(gold, f"{k * a}x+({k * b})y={k * c}").equal is True
    assert compare(gold, f"({c})-({b})y={a}x").equal is True
    assert compare(gold, f"{a}x+({b})y={c + k}").equal is not True


@settings(max_examples=200)
@given(st.text(max_size=60))
def test_any_text_gets_an_answer(text: str) -> None:
    assert compare("18", text).equal in (True, False, None)
    assert compare(text, "18").equal in (True, False, None)
    assert compare(r"x^2+\sqrt2", text).equal in (True, False, None)


HOSTILE = {
    "tower": "9^{9^{9^{9^9}}}",
    "factorial": "10000000!",
    "factorials": "20!!!!",
    "digits": "9" * 1900,
    "exponent": "1e9999",
    "powers": "(a+b+c+d+f+g+h+k)^{100}",
    "product": "(a+b)" * 300,
    "roots": "+".join(rf"\sqrt{{{n}}}" for n in range(2, 180)),
    "fractions": "+".join(rf"\frac{{1}}{{x+{n}}}" for n in range(130)),
    "list": ",".join(map(str, range(500))),
    "surds": ",".join(rf"\sqrt{{{n}}}+1" for n in range(2, 120)),
    "signs": r"\pm 1" * 300,
    "minus": "-" * 1900 + "1",
    "stacked": r"\sqrt{" * 35 + "2" + "}" * 35,
    "sides": "x=" * 600 + "5",
    "union": r"(1,2)\cup" * 150 + "(3,4)",
    "surrogate": "\ud800",
    "nul": "\x00",
    "functions": r"\sin " * 300 + "5",
    "braces": "{" * 1_000_000,
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("gold", ["18", r"\sqrt{2}+x", "1,2,3"])
def test_hostile_answers_take_bounded_time(name: str, gold: str) -> None:
    began = time.monotonic()
    assert compare(gold, HOSTILE[name]).equal is not True
    assert time.monotonic() - began < 5
