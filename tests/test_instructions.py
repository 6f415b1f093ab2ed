"""Each kind of instruction, followed and not; the original's oddities; hostile texts.

The checkers were also compared with the original's own code (PyPI if-verifiable 0.1.2, with Punkt's English model), on
265,000 pairs of a text and an instruction: all kinds agree but for what the module's docstring says.
"""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mull.tasks.instructions import CHECKS, capital_words, contradiction, follows, known, language_of, sentences
from mull.types import UserError

LONG = "the quick brown fox jumps over the lazy dog and then goes home to sleep for the night"

CASES: list[tuple[str, dict[str, Any], list[str], list[str]]] = [
    (
        "keywords:existence", {"keywords": ["tea", "cup"]},
        ["a cup of tea", "TEA CUP", "a teacup", "Cup.\nTea."], ["a cup", "tea", "t e a cup", "nothing"],
    ),
    (
        "keywords:frequency", {"keyword": "oak", "frequency": 2, "relation": "at least"},
        ["oak oak", "Oaks and OAK", "oak\noak", "soaked oak oak"], ["oak", "o a k", "elm", "an oak, an elm"],
    ),
    (
        "keywords:frequency", {"keyword": "oak", "frequency": 2, "relation": "less than"},
        ["oak", "elm", "an Oak", "a soaked elm"], ["oak oak", "oaks OAK", "oakoak", "oak, oak, oak"],
    ),
    (
        "keywords:forbidden_words", {"forbidden_words": ["oak", "fir"]},
        ["oaks", "first soaked", "elm", "o a k"], ["oak", "a Fir.", "(OAK)", "elm, fir-tree"],
    ),
    (
        "keywords:letter_frequency", {"letter": "Z", "let_frequency": 2, "let_relation": "at least"},
        ["zz", "Zoo zebra", "buzz", "z\nz"], ["z", "a zoo", "none", "2 of them"],
    ),
    (
        "keywords:letter_frequency", {"letter": "#", "let_frequency": 3, "let_relation": "less than"},
        ["# a", "##", "none", "#\n#"], ["###", "# # #", "#a#b#c#", "## title #"],
    ),
    (
        "language:response_language", {"language": "de"},
        ["Das ist ein schöner Tag und wir gehen nach Hause.", "Ich weiß nicht, was ich sagen soll.",
         "Heute regnet es, morgen scheint wieder die Sonne.", "123 456"],
        ["This is a nice day and we are going home.", "Je ne sais pas quoi dire.",
         "Это хороший день.", "今日はいい天気です。"],
    ),
    (
        "length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"},
        ["One. Two. Three.", "One! Two? Three...", "Is it? Yes! It is 3.5 now.", "1. A\n2. B"],
        ["One. Two.", "one\ntwo\nthree", "Mr. Smith met Mrs. Jones. They left.", "What?!"],
    ),
    (
        "length_constraints:number_sentences", {"num_sentences": 2, "relation": "less than"},
        ["One.", "one\ntwo", "No!!!", "Dr. Li met J. Doe at 3 p.m. sharp"],
        ["One. Two.", "A? b", "Go!\n\nNow", "a) be. See. do"],
    ),
    (
        "length_constraints:number_words", {"num_words": 4, "relation": "at least"},
        ["a b c d", "well-known old-timers", "a, b; c. d!", "1 2 3 4 5"],
        ["a b c", "", "well-known thing", "... - ..."],
    ),
    (
        "length_constraints:number_words", {"num_words": 3, "relation": "less than"},
        ["a b", "well-known", "one", "it's"], ["a b c", "well-known one", "it's it", "1 2 3"],
    ),
    (
        "length_constraints:number_paragraphs", {"num_paragraphs": 2},
        ["a\n***\nb", "a *** b", "***a***b", "a\n\nc***b***"], ["a", "a***b***c", "a***\n***b", "a\n\nb"],
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"},
        ["a\n\nthen b", "a\n\nThen, b", 'a\n\n"Then" b', "a\nb\n\nTHEN!"],
        ["then\n\nb", "a\n\nthenb", "a\n\nthen\n\nc", "a\n\n\n\nthen"],
    ),
    (
        "detectable_content:number_placeholders", {"num_placeholders": 2},
        ["[a] [b]", "[name],\n[address]", "[[a]] []", "x [1] y [2] z [3]"], ["[a]", "[a [b]", "[a\n] [b]", "(a) (b)"],
    ),
    (
        "detectable_content:postscript", {"postscript_marker": "P.P.S"},
        ["a\nP.P.S b", "p. p. s", "x p.p.s.", "P.P.S."], ["P.S. b", "PPS b", "p..p..s", "nothing"],
    ),
    (
        "detectable_content:postscript", {"postscript_marker": "P.S."},
        ["a\nP.S. b", "p.s. b", "P. S. b", "so P.S."], ["P.S b", "PS. b", "s.p.", "P.P.S b"],
    ),
    (
        "detectable_format:constrained_response", {},
        ["My answer is yes.", "So: My answer is no. Sure", " My answer is maybe. ", "*My answer is yes.*"],
        ["My answer is yes", "my answer is no.", "yes", "My answer is: no."],
    ),
    (
        "detectable_format:json_format", {},
        ['{"a": 1}', "```json\n[1, 2]\n```", "```\n3\n```", f"[{'9' * 9000}]"],
        ["{'a': 1}", "Here: {}", "{", "[" * 100_000],
    ),
    (
        "detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2},
        ["Part 1 a Part 2 b", "Part1\nPart2", "x Part 7 y Part 9 z", "Part 1\nPart 2\nPart 3"],
        ["Part 1 a", "PART 1 a PART 2 b", "Part A Part B", "Parts 1 and 2"],
    ),
    (
        "detectable_format:number_bullet_lists", {"num_bullets": 2},
        ["* a\n* b", "- a\n- b", "x\n  * a\n  - b", "*a\n-b"], ["* a", "* a\n* b\n* c", "** a\n** b", "1. a\n2. b"],
    ),
    (
        "detectable_format:number_highlighted_sections", {"num_highlights": 2},
        ["*a* *b*", "**a** **b**", "x *a b* y *c*", "*a*\n*b*\n*c*"], ["*a*", "** ** *a*", "*a\nb* *c", "none"],
    ),
    (
        "detectable_format:title", {},
        ["<<a>>", "x\n<<Ode to joy>>\ny", "<<<a>>>", "<< a > b >>"], ["<a>", "<<>>", "<<  >>", "<<a\nb>>"],
    ),
    (
        "combination:two_responses", {},
        ["a******b", "******a******b", "a\n******\nb\n******\n", "a *** c******b"],
        ["a", "a******a", "a******b******c", "a************b"],
    ),
    (
        "combination:repeat_prompt", {"prompt_to_repeat": "Sing a song. "},
        ["Sing a song. La", " sing a SONG.\nLa", "Sing a song.", "Sing a song.La"],
        ["La. Sing a song.", '"Sing a song." La', "Sing a  song. La", "Sing"],
    ),
    (
        "startend:end_checker", {"end_phrase": "That is all."},
        ["a That is all.", "That is ALL.\n", '"So that is all."', "that is all."],
        ["That is all", "That is all. Bye", "that is all.*", "all."],
    ),
    (
        "startend:quotation", {},
        ['"a"', ' "a\nb" ', '""', '"a" or "b"'], ["a", '"a', '"', "“a”"],
    ),
    (
        "change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"},
        ["A B", "I SAY so", "DON'T", "NASA and COVID-19"], ["WELL-KNOWN", "Nasa Esa", "a 1 2", "I've"],
    ),
    (
        "change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "less than"},
        ["WELL-KNOWN", "none", "IBM's new chess", "1 2 3"], ["I AM", "YES,NO", "A\nB", "CANNOT"],
    ),
    (
        "change_case:english_capital", {},
        [LONG.upper(), LONG.upper() + " 1!", "\n" + LONG.upper(), LONG.upper() * 2],
        [LONG, LONG.upper() + "a", "DAS IST EIN SCHÖNER TAG UND WIR GEHEN NACH HAUSE", "123"],
    ),
    (
        "change_case:english_lowercase", {},
        [LONG, LONG + " 1!", "\n" + LONG, LONG * 2],
        [LONG.upper(), LONG + "A", "das ist ein schöner tag und wir gehen nach hause", "123"],
    ),
    ("punctuation:no_comma", {}, ["a b", "a; b.", "a，b", "1.5"], ["a, b", ",", "1,000", "a,\nb"]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)])
def test_what_follows_and_what_does_not(kind: str, arguments: dict[str, Any], good: list[str], bad: list[str]):
    assert len(good) >= 4
    assert len(bad) >= 4
    for text in good:
        assert follows(kind, text, arguments)[0], (text, follows(kind, text, arguments))
    for text in bad:
        ok, why = follows(kind, text, arguments)
        assert not ok, (text, why)
        assert why


def test_all_25_kinds_have_cases():
    assert {kind for kind, *_ in CASES} == set(CHECKS)
    assert len(CHECKS) == 25


def test_an_empty_answer_follows_nothing():
    for kind, arguments, *_ in CASES:
        for text in ("", " \n\t"):
            assert follows(kind, text, arguments) == (False, "the answer is empty")


def test_oddities_of_the_original_are_kept():
    """A bare asterisk takes the next line as its text; a rule is a bullet; "e.g." ends a sentence."""
    assert follows("detectable_format:number_bullet_lists", "*\n* a", {"num_bullets": 1})[0]
    assert follows("detectable_format:number_bullet_lists", "*\na\n*", {"num_bullets": 1})[0]
    assert follows("detectable_format:number_bullet_lists", "a\n---\n- b", {"num_bullets": 2})[0]
    assert sentences("Eat fruit, e.g. apples.") == 2


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("no end", 1),
        ("Wait... what", 1),
        ("Wait... He went", 2),
        ('"Go!" she said. "Yes."', 3),
        ("It costs 3.50 in the U.S. today.", 1),
        ("He came at 5 p.m. The rest left.", 2),
        ("It is no. 3. he said", 2),
        ("(Yes.) Then he left.", 2),
        ("bold.** Next", 2),
        ("See example.com for more.", 1),
        ("Great ! Is it ?", 2),
    ],
)
def test_sentences(text: str, count: int):
    assert sentences(text) == count


@given(st.lists(st.sampled_from(["The cat sat.", "Is it so?", "He said: go!", "Rain fell on Mr. Smith."]), min_size=1))
def test_sentences_add_up(parts: list[str]):
    assert sentences(" ".join(parts)) == sentences("\n\n".join(parts)) == len(parts)


@pytest.mark.parametrize(
    ("text", "count"),
    [("U.S.A.", 1), ("I'M", 2), ("IBM's", 1), ("AND/OR", 1), ("A--B", 2), ("X,Y 3,000K", 3), ("É!", 1)],
)
def test_words_in_capitals(text: str, count: int):
    assert capital_words(text) == count


@given(st.text(), st.integers(0, 5))
def test_less_than_and_at_least_are_opposites(text: str, bound: int):
    for kind, name, relation, more in (
        ("length_constraints:number_words", "num_words", "relation", {}),
        ("length_constraints:number_sentences", "num_sentences", "relation", {}),
        ("change_case:capital_word_frequency", "capital_frequency", "capital_relation", {}),
        ("keywords:letter_frequency", "let_frequency", "let_relation", {"letter": "a"}),
        ("keywords:frequency", "frequency", "relation", {"keyword": "a"}),
    ):
        if text.strip():
            less, least = (
                follows(kind, text, {name: bound, relation: said, **more})[0] for said in ("less than", "at least")
            )
            assert less != least


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_all_json_is_json(value: dict[str, Any]):
    for text in (json.dumps(value), f"```json\n{json.dumps(value, indent=2)}\n```"):
        assert follows("detectable_format:json_format", text, {})[0]


def test_instructions_that_exclude_one_another_are_found():
    repeat = ("combination:repeat_prompt", {"prompt_to_repeat": "Sing, bird, of oak"})
    end = ("startend:end_checker", {"end_phrase": "Bye, oak."})
    tea = ("keywords:existence", {"keywords": ["tea", "oak"]})
    few = ("keywords:frequency", {"keyword": "oak", "frequency": 1, "relation": "less than"})
    many = ("keywords:frequency", {"keyword": "oak", "frequency": 9, "relation": "at least"})
    forbidden = ("keywords:forbidden_words", {"forbidden_words": ["oak"]})
    for pair in ([repeat, ("punctuation:no_comma", {})], [few, end], [forbidden, tea], [tea, few]):
        assert "nobody can follow" in contradiction(pair), pair
    for pair in ([repeat, end], [many, tea], [("punctuation:no_comma", {}), tea], [repeat], []):
        assert contradiction(pair) == "", pair


HOSTILE = {
    "brackets": "[" * 1_000_000,
    "braces": "{" * 1_000_000,
    "angles": "<" * 1_000_000,
    "stars": "*" * 1_000_000,
    "breaks": "\n" * 999_999 + "a",
    "blanks": " " * 999_999 + "a",
    "marks": ".?!" * 300_000,
    "digits": "9" * 1_000_000,
    "words": "A. " * 300_000,
    "word": "a" * 1_000_000,
    "quotes": "'\"" * 500_000,
    "surrogates": "\ud800\x00\u202e" * 300_000,
    "mail": "a@" * 500_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_megabyte_of_anything_is_judged_in_seconds(text: str):
    """CPU seconds of all kinds together; the original takes the square of the length on most of these."""
    start = time.process_time()
    for kind, arguments, *_ in CASES:
        follows(kind, text, arguments)
    assert time.process_time() - start < 10


def test_languages_are_told_alike_each_time():
    mixed = "Hola hello bonjour hallo ciao ola"
    assert len({language_of(mixed) for _ in range(20)}) == 1
    assert language_of("1234 ...") is None


def test_threads_tell_languages_as_one_does():
    texts = ["Das ist ein Haus am See", "C'est une maison", "This is a house by the lake", "ola ciao hello"] * 10
    alone = [language_of(text) for text in texts]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(language_of, texts)) == alone


def test_an_unknown_kind_gets_the_nearest():
    with pytest.raises(UserError, match=r"no instruction.*punctuation:no_comma"):
        known("punctuation:no_commas")
