"""math-verify in its process: what it says, how it ends, and how it is missed."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time

import pytest

from mull.tasks.mathverify import MathVerify, shown
from mull.types import UserError

NEEDED = pytest.mark.skipif(importlib.util.find_spec("math_verify") is None, reason="needs math-verify")


@pytest.fixture(scope="module")
def second() -> MathVerify:
    return MathVerify()


@NEEDED
@pytest.mark.parametrize(
    ("gold", "answer", "said"),
    [
        ("18", r"\boxed{18}", (True, "equal")),
        (r"\frac12", r"so it is \boxed{0.5}.", (True, "equal")),
        ("18", r"\boxed{17}. No: \boxed{18}.", (True, "equal")),
        ("18", r"\boxed{19}", (False, "not equal")),
        ("18", "I do not know", (None, "found nothing")),
        ("18", "", (None, "found nothing")),
        ("90^\\circ", r"\fbox{90°}", (True, "equal")),
    ],
)
def test_what_it_says(second: MathVerify, gold: str, answer: str, said: object) -> None:
    assert second.compare(gold, answer) == said


@NEEDED
def test_prose_with_money_and_calculations(second: MathVerify) -> None:
    text = "She has 3 * 2 = $<<3*2=6>>6, and so\n#### 6"
    assert second.compare("6", text, worded=True) == (True, "equal")
    assert second.compare("7", text, worded=True) == (False, "not equal")


def test_it_is_shown_the_last_boxes() -> None:
    assert shown(r"first \boxed{1}, then \boxed{2} or \boxed{3} it is", False) == r"\boxed{2} or \boxed{3} it is"
    assert len(shown("x" * 1_000_000, False)) <= 8000
    assert shown("<think>\\boxed{1}</think>none", False) == "none"


@NEEDED
def test_what_never_ends_is_ended(second: MathVerify) -> None:
    began = time.monotonic()
    assert second.compare("18", r"\boxed{10000000!}") == (None, "took too long")
    assert time.monotonic() - began < 60
    assert second.compare("18", r"\boxed{18}") == (True, "equal")  # in a new process


@NEEDED
@pytest.mark.parametrize("text", ["\ud800", "\x00", "{" * 100_000, "\\boxed{" * 2_000, "$" * 5_000, "\\" * 5_000])
def test_any_text_gets_an_answer(second: MathVerify, text: str) -> None:
    assert second.compare("18", text)[0] is not True


@NEEDED
def test_threads_take_turns(second: MathVerify) -> None:
    said: list[bool | None] = []

    def ask(part: int) -> None:
        for n in range(part * 10, part * 10 + 10):
            said.append(second.compare(str(n), rf"\boxed{{{n}}}")[0])
            said.append(not second.compare(str(n), rf"\boxed{{{n + 1}}}")[0])

    threads = [threading.Thread(target=ask, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == [True] * 80


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "math_verify", None)  # as an import that fails
    with pytest.raises(UserError, match="pip install 'math-verify"):
        MathVerify().ready()


@NEEDED
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("18", "The answer is `18`."),
        ("18", r"\boxed{€18}"),
        ("2.5", r"\boxed{2 1/2}"),
        ("2\\pi", r"\boxed{2pi}"),
        ("7\\sqrt3", r"\boxed{7√3}"),
        ("\\emptyset", r"\boxed{\varnothing}"),
        ("1/6", r"\boxed{0.1\overline{6}}"),
        ("53_8", r"\boxed{53 \text{ base } 8}"),
        ("8", r"\boxed{\color{red}8}"),
    ],
)
def test_writings_that_it_is_shown_in_its_own(second: MathVerify, gold: str, answer: str) -> None:
    assert second.compare(gold, answer)[0] is True
