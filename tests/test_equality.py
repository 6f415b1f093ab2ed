"""Same value or not: proofs of yes, witnesses of no, and honest ignorance."""

from __future__ import annotations

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mull.tasks.algebra import Algebra, TooHard, exact
from mull.tasks.equality import near, same
from mull.tasks.latex import Op, Quantity, Tree, read
from mull.tasks.writings import Unreadable


def tree(text: str) -> Tree:
    item = read(text)
    assert isinstance(item, Quantity)
    return item.tree


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
        (r"\sqrt[3]{2+\sqrt5}+\sqrt[3]{2-\sqrt5}", "1"),
        (r"\cos(\pi/5)", r"\frac{1+\sqrt5}{4}"),
        (r"\cos\frac{\pi}{7}\cos\frac{2\pi}{7}\cos\frac{3\pi}{7}", r"\frac18"),
        (r"\cos 2x", r"1-2\sin^2 x"),
        (r"\sin(x+\frac{\pi}{3})", r"\frac12\sin x+\frac{\sqrt3}{2}\cos x"),
        (r"\tan x", r"\frac{\sin x}{\cos x}"),
        (r"e^{i\pi}", "-1"),
        (r"\ln 8", r"3\ln 2"),
        (r"\log_4 2", r"\frac12"),
        (r"\frac{x^2-1}{x-1}", "x+1"),
        ("2^{x+1}", r"2\cdot 2^x"),
        ("(-8)^{1/3}", "-2"),
        ("i^{2023}", "-i"),
        (r"\frac{1}{\sqrt2+\sqrt3}", r"\sqrt3-\sqrt2"),
        (r"\sqrt{x}\sqrt{x}", "x"),
        (r"\binom{10}{3}", "120"),
        (r"|-3|", "3"),
        (r"\lfloor 3.7\rfloor", "3"),
    ],
)
def test_proofs(a: str, b: str) -> None:
    assert same(tree(a), tree(b)) is True
    assert same(tree(b), tree(a)) is True


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt{3+2\sqrt2}", r"1-\sqrt2"),
        ("1-1/e", "1+1/e"),
        ("1/2^{99}", "1/2^{98}"),
        (r"\pi", "3.14159265358979323846264338327950288"),
        (r"\sqrt{10^{40}+1}", "10^{20}"),
        (r"\sin x", r"\cos x"),
        (r"\cos\frac{\pi}{7}", r"\cos\frac{6\pi}{7}"),
        ("x", "y"),
        (r"\sqrt{2}+\sqrt{3}", r"\sqrt{5}"),
        ("(1+x+y+z)^{20}", "3"),
    ],
)
def test_witnesses(a: str, b: str) -> None:
    assert same(tree(a), tree(b)) is False


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt{x^2}", "x"),  # the one only where x > 0
        (r"\arctan 1", r"\pi/4"),  # no rule for it
        ("9^{9^9}", "3"),  # too large to compute
        ("10^{2000}!", "3"),
        (r"\ln(1+10^{-70})", "10^{-70}"),  # near, and not the same
        (r"e^{10^{-80}}", "1"),
    ],
)
def test_what_cannot_be_told(a: str, b: str) -> None:
    assert same(tree(a), tree(b)) is None


def test_near_values_of_radicals_are_told_apart() -> None:
    """sqrt(10^80 + 1) - 10^40 is 5e-41: closer than the digits that we look at, and not nothing."""
    assert near(tree(r"\sqrt{10^{180}+1}"), tree("10^{90}")) is True
    assert same(tree(r"\sqrt{10^{180}+1}"), tree("10^{90}")) is not True


@pytest.mark.parametrize(
    "text", ["1/0", r"\frac{x}{1-1}", r"\ln 0", r"0^{-1}", r"\frac{1}{\sqrt6-\sqrt2\sqrt3}", "(-3)!"]
)
def test_what_has_no_value(text: str) -> None:
    with pytest.raises(Unreadable):
        same(tree(text), Fraction(1))


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}",
        "10000000!",
        "20!!!",
        "(a+b+c+d)^{100}",
        r"\sqrt[1000000]{2}",
        r"\binom{1000000}{500000}",
        r"\sqrt{%s7}" % ("123456789" * 20),
        r"\cos(1000000x)^{99}",
        r"\sin^{99}x\cos^{99}x",
        "2^{100000}",
        "e^{e^{e^{e^9}}}",
    ],
)
def test_hard_ones_take_bounded_time(text: str) -> None:
    began = time.monotonic()
    assert same(tree(text), Op("root", (Fraction(2), Fraction(2)))) is not True
    assert time.monotonic() - began < 5


def test_work_is_counted() -> None:
    with pytest.raises(TooHard):
        Algebra().ratio(tree("(a+b+c+d+f+g)^{60}"))


small = st.integers(-9, 9)
rationals = st.fractions(min_value=-20, max_value=20, max_denominator=12)
leaves = st.sampled_from(["x", "y", "pi"]) | rationals | small.map(Fraction)


def grown(inner: st.SearchStrategy[Tree]) -> st.SearchStrategy[Tree]:
    pair = st.tuples(inner, inner)
    return (
        pair.map(lambda two: Op("+", two))
        | pair.map(lambda two: Op("*", two))
        | inner.map(lambda one: Op("neg", (one,)))
        | st.tuples(inner, st.integers(0, 3).map(Fraction)).map(lambda two: Op("^", two))
        | st.integers(2, 30).map(lambda n: Op("root", (Fraction(n), Fraction(2))))
    )


trees = st.recursive(leaves, grown, max_leaves=6)


@settings(max_examples=60, deadline=None)
@given(trees, trees, trees)
def test_laws_of_arithmetic_hold(a: Tree, b: Tree, c: Tree) -> None:
    assert same(Op("+", (a, b)), Op("+", (b, a))) is True
    assert same(Op("*", (a, Op("+", (b, c)))), Op("+", (Op("*", (a, b)), Op("*", (a, c))))) is not False
    assert same(Op("+", (a, Op("neg", (a,)))), Fraction(0)) is True


@settings(max_examples=60, deadline=None)
@given(trees, rationals.filter(bool))
def test_what_is_added_makes_a_difference(a: Tree, more: Fraction) -> None:
    assert same(a, Op("+", (a, more))) is not True


@given(rationals, rationals)
def test_rationals_are_compared_as_such(a: Fraction, b: Fraction) -> None:
    assert same(a, b) is (a == b)
    assert exact(Op("+", (a, b))) == a + b
