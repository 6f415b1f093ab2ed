"""What counts as right in a user's own file."""

from __future__ import annotations

import json
import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks.graders import PLAIN, grade, value_of

ACCEPTED = [
    ("number", "18", "18"), ("number", "18", "The answer is 18."), ("number", "18", "**18**"),
    ("number", "18", "$18.00"),
    ("number", "18", "She earns 9 * 2 = 18 dollars."), ("number", "18", "#### 18"), ("number", "18", r"\boxed{18}"),
    ("number", "18", "18 apples"), ("number", "1,234", "1234"), ("number", "1234", "1,234"), ("number", "0.5", "1/2"),
    ("number", "1/2", r"$\frac{1}{2}$"), ("number", "50%", "50"), ("number", "50", "50 %"), ("number", "0.5", "50%"),
    ("number", "3.5", "3 1/2"), ("number", "3.5", r"3\frac{1}{2}"), ("number", "-3", "−3"),
    ("number", "-3", "answer: -3"),
    ("number", "5", "The answer is 5 for 3 apples."), ("number", "12", "The answer is 3*4 = 12"), ("number", "7", "7."),
    ("number", "18 apples", "18"), ("number", "1e3", "1000"), ("number", "5", "So 5.\n\nHope that helps!"),
    ("number", "10000", r"10{,}000"), ("number", "18", r"Not \boxed{17} but \boxed{18\text{ dollars}}"),
    ("number", "5", "Answer: 5 (not 6)"), ("number", "18", "The answer is 18 eggs, since 3 are eaten."),
    ("number", "18", "The answer is 18, not 19"), ("number", "18", "Answer: Anna makes $18 every day"),
    ("number", "5000000", "The answer is 5 million."), ("number", "5 million", "5,000,000"),
    ("number", "70000", r"\boxed{70 000}"), ("number", "18", "It is 18!"),
    ("number", "18", "She has 18 apples and is glad."), ("number", "9", "9 months"),
    ("number", "18", "18 - the sum."),
    ("number", "8", r"\boxed{f(3) = 8}"), ("number", "5", r"\boxed{\sqrt{25}}"), ("number", "32", r"\boxed{2^5}"),
    ("number", "5", "5 m^2"), ("number", "5", "5 km/h"), ("number", "5", "5m"), ("number", "5", "５"),
    ("number", "3.5", "3½"), ("number", "5", "5 cm²"), ("number", "18", "So 18 is the answer."),
    ("number", "18", "The total over 3 days is 18"), ("number", "18", "The cost of 3 hats minus the rest is 18"),
    ("number", "5", r"It is not easy. So \boxed{5}"),
    ("number", "18", "The answer is **18**<|im_end|>"), ("number", "5", "It is 5cm long."),
    ("text", "Paris", "paris"), ("text", "Paris", "**Paris**."), ("text", "Paris", "The answer is Paris."),
    ("text", "Paris", "Let me think.\n\nParis"), ("text", "Rue  de Rivoli", "rue de rivoli"),
    ("text", "naïve", "NAÏVE"),
    ("text", "it's", "It’s"), ("text", "Paris", r"\boxed{\text{Paris}}"), ("text", "yes", "Answer: Yes"),
    ("choice", "B", "B"), ("choice", "B", "(B)"), ("choice", "B", "b"), ("choice", "B", "B. Paris"),
    ("choice", "B", "**B**"),
    ("choice", "B", "The answer is B because A is wrong."), ("choice", "B", r"\boxed{B}"), ("choice", "(B)", "B) 42"),
    ("choice", "B", "B - Paris"), ("choice", "B", "I weigh them.\n\nB"), ("choice", "B", "Answer: (B)"),
    *(("choice", "B", text) for text in (
        "The correct option is B", "Option B", "I think it is B.", "A is wrong, so B", "Option B is correct.",
        "Let me see.\n\nTherefore, the correct choice is B: Paris", "I would choose **B**",
        "The best choice is (B) Paris",
    )),
    ("json", '{"a":1}', 'Here: {"a":1} as asked'), ("json", "[1]", "I found [1]. That is all."),
    ("contains", "Paris", "It is Paris, of course."), ("contains", "C++", "Use C++."), ("contains", "3", "The 3 of us"),
    ("json", '{"a": 1, "b": [true]}', '```json\n{"b": [true], "a": 1.0}\n```'), ("json", "[1, 2]", "It is [1, 2]"),
    ("json", '{"a": null}', 'Here:\n{"a": null}'),
]  # fmt: skip
REFUSED = [
    ("number", "18", "17"), ("number", "18", "-18"), ("number", "18", "18.5"), ("number", "18", "180"),
    ("number", "18", "1 8"),
    ("number", "18", "18 or 19"), ("number", "19", "18 or 19"), ("number", "19", "18-19"), ("number", "18", "18, 19"),
    ("number", "18", r"\boxed{18} \boxed{19}"), ("number", "18", "The answer is 18 or 19."), ("number", "18", "18/19"),
    ("number", "2", "2 + 3"), ("number", "23", "2*3"), ("number", "3", "3 1/2"), ("number", "31/2", r"3\frac{1}{2}"),
    ("number", "1819", "18,19"), ("number", "10", "10^5"), ("number", "18", "The answer is not 18 but 17"),
    ("number", "18", "eighteen"), ("number", "18", "١٨"), ("number", "18", ""), ("number", "18", "18\n\nNo, it is 17."),
    ("number", "0.33", "1/3"), ("number", "18", "1e18"), ("number", "1", "1e999999999"),
    ("number", "5", "10-5 is not it: 6"),
    *(("number", "5", text) for text in (
        r"\boxed{\sqrt{5}}", r"\boxed{5\sqrt2}", r"\boxed{5\pi}", r"\boxed{5x}", r"\boxed{x^5}", r"\boxed{5!}",
        r"\boxed{\frac{5}{x}}", r"\boxed{\pi+5}", r"\boxed{5\times10^6}", r"\boxed{2^5}", r"\boxed{5 xy}",
        r"\boxed{5 \text{ hundredths}}", r"\boxed{5 \text{ thirds}}", r"\boxed{5 \text{ or so}}", r"\boxed{5π}",
        r"\boxed{\text{not } 5}", r"\boxed{\text{at least } 5}", r"\boxed{5 \text{ is wrong}}", r"\boxed{x \ne 5}",
        "The answer is 5 million", "The answer is 5 dozen", "The answer is 5 times 3", "The answer is 5 squared",
        "The answer is half of 5", "The answer is the square root of 5", "The answer is x >= 5",
        "The answer is not 5", "The answer cannot be 5", "Answer: it isn't 5",
        "The answer is 5 thousand dollars, I think",
        "5k", "5x", "5 x", "5 pi", "5!", "minus 5", "It is not 5.", "I would not say 5", "I don't think it is 5.",
        "> 5", "at least 5", "no more than 5", "3 < x < 5", "5+", "5-6", "5th", "It is the 5th.", "It is 5 million.",
        "It is 5 hundredths.", "It is sqrt(5) then", "The area is 5\\pi then", "So 5 is wrong.",
        "1. one\n2. two\n5. foo",
        "The result is 6 (see line 5)", "The value is x^5 there", "It is 2 * 5 here", "We get 5 / x there",
    )),
    ("number", "0.5", "0.5%"), ("number", "-19", "18-19"), ("number", "5", r"The answer is not \boxed{5}"),
    ("number", "5", r"\boxed{6} (not \boxed{5})"), ("number", "52", "5²"),
    ("number", "15.5", "3½"), ("number", "52", "5₂"), ("number", "5", r"\boxed{5 \text{ feet } 3 \text{ inches}}"),
    ("number", "1", "1%"), ("number", "5 million", "5"),
    ("text", "Paris", "London"), ("text", "Paris", "Paris or London"), ("text", "Paris", "It is not Paris"),
    ("text", "a", ""),
    ("text", "Paris", "The answer is London.\n\nNot Paris"), ("text", "yes", "yes and no"), ("text", "Paris", "**"),
    ("choice", "B", "A"), ("choice", "B", "A or B"), ("choice", "B", "B, C"), ("choice", "A", "The answer is A dog"),
    ("choice", "B", "The answer is B or C"), ("choice", "A", "A lot of people think so"), ("choice", "B", "None"),
    ("choice", "B", "B. Paris or C. Rome"), ("choice", "B", "(B) and (D)"),
    *(("choice", "B", text) for text in (
        "It is not B.", "I don't think it is B.", "Not option B", "The correct option is B or C", "Option B is wrong.",
        "It is either B or C", "Option B and option C", "The answer is not B",
    )),
    ("choice", "A", "It is A dog"), ("json", "[1]", "It is not [1]"), ("json", "[1]", "It is [1], or perhaps [2]."),
    ("contains", "cat", "concatenate"), ("contains", "3", "30"), ("contains", "Paris", "London"),
    ("json", '{"a": 1}', '{"a": true}'), ("json", '{"a": 1}', '{"a": 1, "b": 2}'), ("json", "[1, 2]", "[2, 1]"),
    ("json", '{"a": 1}', "a is 1"), ("json", "[1]", "[1] or [2]"), ("json", '{"a": 0}', '{"a": NaN}'),
]  # fmt: skip


@pytest.mark.parametrize(("name", "gold", "answer"), ACCEPTED)
def test_accepted(name, gold, answer):
    verdict = grade(name, [gold], answer)
    assert verdict.outcome == "solved", verdict
    assert verdict.reward == 1.0
    assert grade(name, ["nothing 1 of 2 it" if name != "json" else "0", gold], answer).outcome == "solved"


@pytest.mark.parametrize(("name", "gold", "answer"), REFUSED)
def test_refused(name, gold, answer):
    verdict = grade(name, [gold], answer)
    assert verdict.outcome in ("wrong", "unparsed"), verdict
    assert verdict.reward == 0.0
    assert verdict.words[name]


def test_what_cannot_be_read_is_not_called_wrong():
    for name, answer in (("number", "I do not know"), ("text", " \n"), ("choice", "Paris"), ("json", "{'a': 1}")):
        assert grade(name, ["1"], answer).outcome == "unparsed"


HOSTILE = {
    "braces": "{" * 1_000_000, "brackets": "[" * 1_000_000, "boxes": r"\boxed{" * 140_000, "digits": "9" * 1_000_000,
    "tower": "9" + "**9" * 300_000, "answers": "answer is " * 100_000, "blanks": " " * 1_000_000,
    "lines": "\n" * 1_000_000,
    "fractions": r"\frac{1}{" * 100_000, "fences": "```json\n" * 120_000, "commas": "1," * 500_000,
    "slashes": "1/" * 500_000,
    "numbers": "1 " * 500_000, "quotes": '"' * 1_000_000, "exponent": "1e" + "9" * 1000, "letters": "A " * 500_000,
    "surrogate": "\ud800", "nul": "\0",
    "golds": "ab " * 300_000, "stars": "*" * 1_000_000, "backslashes": "\\" * 1_000_000,
    "zeros": "0." + "0" * 500_000, "division": "1/0", "units": "5" + " a" * 400_000, "texts": r"\text{" * 150_000,
}  # fmt: skip


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_answers_take_no_time(name, kind):
    began = time.process_time()
    verdict = grade(name, ["[1]"] if name == "json" else ["ab ab ac"] if kind == "golds" else ["1"], HOSTILE[kind])
    assert time.process_time() - began < 1.0
    if kind not in ("numbers", "commas", "slashes", "zeros", "fractions"):  # some of which end in the gold
        assert verdict.outcome != "solved" or name == "contains"


@given(name=st.sampled_from(sorted(PLAIN)), answer=st.text(), gold=st.text())
def test_any_answer_gets_a_verdict(name, answer, gold):
    verdict = grade(name, ["[1]"] if name == "json" else [gold], answer)
    assert verdict.outcome in ("solved", "wrong", "unparsed")


@given(st.fractions(max_denominator=10**6), st.sampled_from(["{}", "The answer is {}.", r"\boxed{{{}}}", "#### {} "]))
def test_a_number_is_right_and_its_neighbours_are_wrong(value, form):
    assert grade("number", [str(value)], form.format(value)).outcome == "solved"
    for other in (value + 1, value * 10 if value else 1, -value if value else 1, value + Fraction(1, 10**9)):
        assert grade("number", [str(value)], form.format(other)).outcome == "wrong"


@given(st.integers(-(10**12), 10**12), st.integers(0, 6))
def test_values(whole, places):
    value = Fraction(whole, 10**places)
    assert value_of(f"{float(value):.{places}f}" if abs(whole) < 10**9 else str(value)) == value
    assert value_of(f"{whole:,}") == whole
    assert value_of(f"{whole:,} kg") == whole


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
                    max_leaves=8))  # fmt: skip
def test_json_is_itself(value):
    gold = json.dumps(value)
    assert grade("json", [gold], gold).outcome == "solved"
    if isinstance(value, dict | list):
        assert grade("json", [gold], f"```json\n{json.dumps(value, indent=2)}\n```\nDone.").outcome == "solved"
