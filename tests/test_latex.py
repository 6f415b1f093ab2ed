"""The parser: what a writing is read as, and that nothing else than Unreadable comes of any text."""

from __future__ import annotations

import time
from contextlib import suppress
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mull.tasks.algebra import exact
from mull.tasks.latex import Group, Numeral, Op, Quantity, Relation, Words, read
from mull.tasks.units import unit_of
from mull.tasks.writings import Unreadable, cleaned

HALF = Fraction(1, 2)
PIECES = (
    "1",
    "23",
    ".5",
    "x",
    "y",
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    "\\{",
    "\\}",
    "|",
    "^",
    "_",
    "+",
    "-",
    "*",
    "/",
    "=",
    "<",
    ",",
    ";",
    ":",
    "!",
    "%",
    "\\%",
    "$",
    "\\$",
    " ",
    "\\frac",
    "\\sqrt",
    "\\pi",
    "e",
    "i",
    "\\pm",
    "\\sin",
    "\\log",
    "\\text{cm}",
    "\\text{",
    "\\cup",
    "\\infty",
    "\\le",
    "\\in",
    "^\\circ",
    "\\begin{pmatrix}",
    "\\end{pmatrix}",
    "&",
    "\\\\",
    "or",
    "and",
    "\\binom",
    "\\boxed{",
    "\\left",
    "\\right",
    "\\word<",
    ">",
    "\\lfloor",
    "\\rfloor",
    "\\mathbb{R}",
    "\\setminus",
    "½",
)


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("12", Fraction(12)),
        (r"\frac43", Op("/", (Fraction(4), Fraction(3)))),
        (r"\frac 59", Op("/", (Fraction(5), Fraction(9)))),
        (r"\frac{27}7", Op("/", (Fraction(27), Fraction(7)))),
        (r"139 \frac{1}{2}", Fraction(279, 2)),
        ("1 4/5", Fraction(9, 5)),
        ("1,234,567", Fraction(1234567)),
        (r"11,\! 111,\! 100", Fraction(11111100)),
        ("2.50", Fraction(5, 2)),
        (".125", Fraction(1, 8)),
        ("6.5e-3", Fraction(13, 2000)),
        ("2e", Op("*", (Fraction(2), "e"))),
        ("2^10", Op("^", (Fraction(2), Fraction(10)))),
        (r"\sqrt2", Op("root", (Fraction(2), Fraction(2)))),
        (r"\sqrt[3]{x}", Op("root", ("x", Fraction(3)))),
        ("-x^2", Op("neg", (Op("^", ("x", Fraction(2))),))),
        ("x_1", "x_1"),
        (r"\sin^2 x", Op("^", (Op("sin", ("x",)), Fraction(2)))),
        (r"\log_2 8", Op("log", (Fraction(8), Fraction(2)))),
        ("ab", Op("*", ("a", "b"))),
        ("5!", Op("factorial", (Fraction(5),))),
    ],
)
def test_values(text: str, tree: object) -> None:
    assert read(text) == Quantity(tree)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "item"),
    [
        ("(1,2]", Group("(]", (Quantity(Fraction(1)), Quantity(Fraction(2))))),
        ("(1,234)", Group("()", (Quantity(Fraction(1)), Quantity(Fraction(234))))),
        (r"\{1,2\}", Group("{}", (Quantity(Fraction(1)), Quantity(Fraction(2))))),
        ("1, 2", Group(",", (Quantity(Fraction(1)), Quantity(Fraction(2))))),
        ("1 or 2", Group("or", (Quantity(Fraction(1)), Quantity(Fraction(2))))),
        ("x=5", Relation((Quantity("x"), Quantity(Fraction(5))), ("=",))),
        ("1<x", Relation((Quantity(Fraction(1)), Quantity("x")), ("<",))),
        ("52_8", Numeral("52", 8)),
        (r"52_{\text{eight}}", Numeral("52", 8)),
        (r"\text{Blue}", Words("blue")),
        (r"50\%", Quantity(Fraction(50), "%")),
        (r"90^\circ", Quantity(Fraction(90), "degree")),
        (r"35\mbox{ cm}^2", Quantity(Fraction(35), "cm^2")),
        (r"\$7.50", Quantity(Fraction(15, 2), "dollar")),
        ("18 eggs", Quantity(Fraction(18), "eggs")),
        ("3:2", Group(":", (Quantity(Fraction(3)), Quantity(Fraction(2))))),
    ],
)
def test_what_is_more_than_a_value(text: str, item: object) -> None:
    assert read(text) == item


@pytest.mark.parametrize(
    "text",
    [
        "",
        "?",
        "1 8",
        "(1",
        "1)",
        "{1",
        r"\frac{1}",
        r"\unknown{3}",
        "18 or",
        "1８",
        "٣",
        "x²₁₁y",
        "about 18",
        r"\frac10 )",
        r"\left(1",
        "3 +",
        "= 4",
        "18-",
        "9_2",
        "1/",
        r"\begin{pmatrix}1",
        "18 not",
        "," * 9,
        "^2",
        "(" * 500,
    ],
)
def test_what_is_no_result(text: str) -> None:
    with pytest.raises(Unreadable):
        read(text)


@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text(max_size=40))
@example("\\text{\\text{")
@example("\x00\ud800")
def test_any_text_is_read_or_unreadable(text: str) -> None:
    with suppress(Unreadable):
        read(text)


@given(st.fractions(), st.sampled_from([r"\frac{%d}{%d}", r"\dfrac{%d}{%d}", "%d/%d", r"\left(%d/%d\right)"]))
def test_fractions_come_back(value: Fraction, form: str) -> None:
    item = read(form % (value.numerator, value.denominator))
    assert isinstance(item, Quantity)
    assert exact(item.tree) == value


@pytest.mark.parametrize(
    ("words", "unit"),
    [("square inches", "inch^2"), ("in^2", "inch^2"), ("miles per hour", "mile per hour"), ("sq cm", "cm^2"), ("", "")],
)
def test_units_have_one_name(words: str, unit: str) -> None:
    assert unit_of(words) == unit


@pytest.mark.parametrize(
    "words",
    ["or more", "not", "and a half", "maybe", "cm 19", "dozen", "hundredths", "tenths", "thirds", "halves", "k", "lakh",
     "squared", "factorial", "at most", "is wrong", "is an upper bound", "impossible", "thousands"],
)  # fmt: skip
def test_words_that_say_more_than_a_unit(words: str) -> None:
    with pytest.raises(Unreadable):
        unit_of(words)


def test_cleaning_keeps_what_has_meaning() -> None:
    assert cleaned(r"\left(\dfrac{1}{2},\ 3\right).") == r"(\frac{1}{2}, 3)"
    with pytest.raises(Unreadable, match="too long"):
        cleaned("1" * 3000)


@pytest.mark.parametrize(
    "text",
    ["(" * 1990, "{" * 1990, r"\frac" * 390, "-" * 1990, "2^" * 990, r"\text{" * 330, "|" * 1990, r"\sqrt{" * 330],
)
def test_deep_nesting_takes_no_time(text: str) -> None:
    began = time.monotonic()
    with pytest.raises(Unreadable):
        read(text)
    assert time.monotonic() - began < 2
