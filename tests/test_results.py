"""Where an answer states its result."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks.results import result


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (r"It is \boxed{18}.", "18"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{17}. No: \boxed{18}.", "18"),
        (r"\boxed{1} and \boxed{-2}", "1, -2"),
        (r"$\boxed{18}$, $\boxed{19}$", "18, 19"),
        (r"\boxed{18}\boxed{19}", "18, 19"),
        (r"\boxed{18}, that is, I mean, \boxed{19}", "19"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed 7", "7"),
        (r"\fbox{7}", "7"),
        (r"\boxed{17} \boxed{18", None),
        (r"\boxed{}", None),
        (r"<think>\boxed{3}</think>\boxed{4}", "4"),
        (r"<think>\boxed{3}</think>", None),
        ("The answer is 42.", "42"),
        ("The answer is 3.5.", "3.5"),
        ("First the answer is 1.\nThe final answer is **2**.", "2"),
        ("**Answer:** $x^2$", "$x^2$"),
        ("#### 1,234", "1,234"),
        ("There is no answer: 5", None),
        (r"<think> maybe \boxed{18}", None),
        ("<think>so <think>the answer is 18", None),
        (r"So \boxed{}. The answer is 22.", "22"),
        (r"\boxed{22} or \boxed{}", "22"),
        (r"-\boxed{5}", None),
        (r"$-\boxed{5}$", None),
        (r"3\boxed{5}", None),
        (r"2 + \boxed{5} = 7", None),
        (r"9 \times 2 = \boxed{18}", "18"),
        (r"\frac{\boxed{5}}{2}", None),
        (r"\frac{1}{\boxed{5}}", None),
        (r"\sqrt{\boxed{5}}", None),
        (r"\boxed{5}\times 10^6", None),
        (r"\boxed{5}^2", None),
        (r"\boxed{5} million", None),
        (r"$\boxed{5}$ dozen", None),
        (r"\boxed{5}0", None),
        (r"**\boxed{5}**", "5"),
        ("- \\boxed{5} apples", "5"),
        (r"The answer is not \boxed{5}", None),
        (r"\boxed{6} (not \boxed{5})", None),
        ("The answer is 18, not 19.", "18"),
        ("The final answer is 18 eggs, since 3 are eaten.", "18 eggs"),
        ("The answer is **18**<|im_end|>", "18"),
        ("5", None),
        ("", None),
    ],
)
def test_results(text: str, found: str | None) -> None:
    assert result(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("So she has 7 apples.", "7"),
        ("12 and then 1,234.50 dollars", "1,234.50"),
        ("it is -3", "-3"),
        ("costs $18", "$18"),
        ("it is 18 or 19", "18, 19"),
        ("between 18 and 19", "18, 19"),
        ("x2", None),
        ("no number", None),
        (r"5 but \boxed{7}", "7"),
        ("٣", None),
        ("The answer cannot be 5", None),
    ],
)
def test_numbers_where_they_count(text: str, found: str | None) -> None:
    assert result(text, numbers=True) == found


@given(
    st.text(max_size=200)
    | st.lists(st.sampled_from(["\\boxed{", "}", "{", "\\", "1", " ", "\\boxed", "or", "answer is"])).map("".join)
)
def test_any_text_has_a_result_or_none(text: str) -> None:
    assert result(text, numbers=True) is None or isinstance(result(text, numbers=True), str)


@pytest.mark.parametrize(
    "piece",
    [
        "{",
        "}",
        "\\boxed{",
        "\\boxed{1}",
        "\\boxed{1} or ",
        "$",
        "#",
        "####",
        "\\",
        "1,",
        "1 ",
        "9",
        "answer is ",
        "the answer to a ",
        "</think>",
        " ",
        "or ",
    ],
)
def test_a_megabyte_takes_no_time(piece: str) -> None:
    began = time.monotonic()
    result(piece * (1_000_000 // len(piece)), numbers=True)
    assert time.monotonic() - began < 2
