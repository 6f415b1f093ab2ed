"""Votes: answers that say the same are counted together, whatever words they are in."""

from __future__ import annotations

import time
from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.text.votes import majority, number, result


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("We add them.\nThe answer is 42.", 42),
        ("Thus \\boxed{42} is it, and not 7.", 42),
        ("First \\boxed{1}, no: \\boxed{2}", 2),
        ("\\boxed{\\frac{1}{2}}", Fraction(1, 2)),
        ("-\\dfrac{3}{4}", Fraction(-3, 4)),
        ("so it is\n**Answer:** $1,234.50$", Fraction(2469, 2)),
        ("The final answer is: **-3**", -3),
        ("half of them, 50%", Fraction(1, 2)),
        ("12 apples and 30 pears make 42 pieces of fruit.", 42),
        ("42", 42),
        ("42.0\n\n", 42),
        ("about 6.02e23", Fraction("6.02e23")),
        ("The answer is 7 apples, because of that.", 7),
        ("The answer is Paris. It lies on the Seine.", "paris"),
        ("I think\n\\boxed{\\text{Paris}}", "paris"),
        ("\\boxed{x^{2}+1}", "x^{2}+1"),
        ("Yes!", "yes"),
        ("  The Answer is  'B' ", "'b'"),
        ("no answer is known here, but 3 is likely\n5", 5),
        ("\\boxed{12", 12),
        ("1/0", "1/0"),
        ("", None),
        (" \n ", None),
        ("...", None),
    ],
)
def test_what_an_answer_comes_to(answer: str, expected: object) -> None:
    assert result(answer) == expected


@pytest.mark.parametrize(
    "same",
    [
        ["0.5", "1/2", "\\frac{1}{2}", ".5", "50%", "The answer is $0.50$.", "\\boxed{0.5}"],
        ["1000", "1,000", "1e3", "1000.00", "answer: 1000"],
        ["Paris", "paris.", "**Paris**", "The answer is Paris"],
    ],
)
def test_values_are_compared_not_letters(same: list[str]) -> None:
    assert len({result(one) for one in same}) == 1
    assert majority(["other", *same]) == (1, len(same) / (len(same) + 1))


def test_ties_go_to_the_first_and_silence_does_not_vote() -> None:
    assert majority(["1", "2", "2.0", "1.0"]) == (0, 0.5)
    assert majority(["", "", "", "3"]) == (3, 0.25)
    assert majority(["", " "]) == (0, 0.0)
    assert majority(["x"]) == (0, 1.0)


@given(st.lists(st.integers(0, 4), min_size=1, max_size=12), st.randoms())
def test_the_most_frequent_wins_however_it_is_written(values: list[int], random) -> None:
    forms = ("{}", "{}.0", "The answer is {}.", "So \\boxed{{{}}}", "It is 77.\nIn all, {}", "{}.00\n")
    answers = [random.choice(forms).format(value) for value in values]
    index, share = majority(answers)
    counts = Counter(values)
    assert counts[values[index]] == max(counts.values()) and share == counts[values[index]] / len(values)
    assert values.index(values[index]) == index


@given(st.fractions(max_denominator=10**6), st.integers(1, 9))
def test_a_fraction_is_its_value(value: Fraction, factor: int) -> None:
    above, below = value.numerator * factor, value.denominator * factor
    assert number(f"{above}/{below}") == number(f"$\\frac{{{above}}}{{{below}}}$") == value


@given(st.lists(st.text() | st.text("\\boxed{}answer is0123456789.,/%$", max_size=40), min_size=1, max_size=6))
def test_any_texts_have_a_winner(answers: list[str]) -> None:
    index, share = majority(answers)
    assert 0 <= index < len(answers) and 0 <= share <= 1
    again, _ = majority(answers)
    assert again == index


@pytest.mark.parametrize(
    "text", ["\\boxed{" * 50_000, "answer is " * 50_000, "9" * 500_000, "1," * 100_000, "{" * 300_000, "1e99 " * 50_000]
)
def test_hostile_answers_take_no_time(text: str) -> None:
    begun = time.process_time()
    result(text)
    result("answer is " + text)
    assert time.process_time() - begun < 1
