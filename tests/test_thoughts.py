"""Thinking and answer are the same however the text is cut, and token by token; marks are in neither."""

from __future__ import annotations

import random
import time
from functools import cache
from itertools import combinations, pairwise

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from small import chat
from tokenizers import AddedToken

from mull import hub
from mull.text.chat import Chat
from mull.text.thoughts import MARKS, Listener, Marks, Parser, marks_of
from mull.text.tokenizer import END_THINK, THINK, Tokenizer

WAYS = ((True, False), (False, True), (False, False))  # within a thought; perhaps; not


def feed(pieces: list[str], thinking: bool, may_think: bool = False, marks: Marks = MARKS[0]) -> tuple[str, str]:
    parser = Parser(thinking, may_think, marks)
    got = [parser.feed(piece) for piece in pieces] + [parser.flush()]
    return "".join(r for r, _ in got), "".join(c for _, c in got)


def cut(text: str, *at: int) -> list[str]:
    return [text[a:b] for a, b in pairwise([0, *at, len(text)])]


# (text, what it is within a thought, what it is where it may open one)
CORPUS: dict[str, tuple[tuple[str, str], tuple[str, str]]] = {
    "7+1=8\n8</think>8": (("7+1=8\n8", "8"), ("", "7+1=8\n8</think>8")),
    "</think>": (("", ""), ("", "</think>")),
    "no end": (("no end", ""), ("", "no end")),
    "": (("", ""), ("", "")),
    " \n": ((" \n", ""), ("", " \n")),
    "a</thin</think>b": (("a</thin", "b"), ("", "a</thin</think>b")),
    "<</think>": (("<", ""), ("", "<</think>")),
    "a</think": (("a</think", ""), ("", "a</think")),
    "x</think>y</think>z": (("x", "y</think>z"), ("", "x</think>y</think>z")),
    "a</think></think>b": (("a", "</think>b"), ("", "a</think></think>b")),
    "\n<think>\nhm 你</think>\n\nyes🙂": (("\nhm 你", "\n\nyes🙂"), ("\nhm 你", "\n\nyes🙂")),
    "<think>a</think>b<think>c</think>d": (("a", "b<think>c</think>d"), ("a", "b<think>c</think>d")),
    "<think><think>a</think>b": (("<think>a", "b"), ("<think>a", "b")),
    "<thin": (("<thin", ""), ("", "<thin")),
    " <think": ((" <think", ""), ("", " <think")),
    "<think>a": (("a", ""), ("a", "")),
    "<think></think>b": (("", "b"), ("", "b")),
    "b<think>a</think>": (("b<think>a", ""), ("", "b<think>a</think>")),
    "a < b </ c </t": (("a < b </ c </t", ""), ("", "a < b </ c </t")),
}


@pytest.mark.parametrize("marks", MARKS, ids=lambda marks: marks.close)
@pytest.mark.parametrize("text", CORPUS)
def test_every_cut_gives_the_same(text: str, marks: Marks) -> None:
    """All ways to cut in up to three pieces, and character by character."""

    def theirs(text: str) -> str:
        return text.replace(THINK, marks.open).replace(END_THINK, marks.close)

    inside, perhaps = CORPUS[text]
    shown = theirs(text)
    cuts = [c for k in (0, 1, 2) for c in combinations(range(len(shown) + 1), k)] + [tuple(range(len(shown) + 1))]
    for way, want in zip(WAYS, (inside, perhaps, ("", text)), strict=True):
        for at in cuts:
            assert feed(cut(shown, *at), *way, marks) == (theirs(want[0]), theirs(want[1])), cut(shown, *at)


PARTS = ["<", "/", "think", ">", THINK, END_THINK, "a", "</", "\n", " ", "你"]


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from(PARTS)), st.sampled_from(WAYS), st.randoms())
def test_any_pieces_give_the_same_as_the_whole(parts: list[str], way: tuple[bool, bool], draw: random.Random) -> None:
    text = "".join(parts)
    at = sorted(draw.randrange(len(text) + 1) for _ in range(draw.randrange(6)))
    assert feed(cut(text, *at), *way) == feed([text], *way) == feed(parts, *way)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(PARTS)))
def test_what_a_text_is(parts: list[str]) -> None:
    """As one would say it of a whole text."""
    text = "".join(parts)
    opened = text.lstrip().startswith(THINK)
    thought, _, said = (text.lstrip()[len(THINK) :] if opened else text).partition(END_THINK)
    assert feed([text], True) == (thought, said)
    assert feed([text], False, may_think=True) == ((thought, said) if opened else ("", text))
    assert feed([text], False) == ("", text)


@settings(deadline=None, max_examples=100)
@given(st.text("</think>a", max_size=30))
def test_no_text_is_held_longer_than_it_may_be_a_mark(text: str) -> None:
    parser, shown = Parser(True), ""
    for i, char in enumerate(text):
        shown += "".join(parser.feed(char))
        so_far = text[: i + 1].removeprefix(THINK)
        rest = so_far.replace(END_THINK, "", 1)[len(shown) :]
        assert len(rest) < len(END_THINK)
        assert END_THINK.startswith(rest) or THINK.startswith(rest)


@pytest.mark.parametrize("text", ["<", "</think", " ", "\n", "<think>", "</think>", " <think"])
@pytest.mark.parametrize("way", WAYS)
def test_hostile_texts_take_no_longer(text: str, way: tuple[bool, bool]) -> None:
    many = text * (1_000_000 // len(text))
    begun = time.process_time()
    assert "".join(feed([many], *way)).count("n") >= many.count("n") - 2
    small = many[:300_000]
    assert feed([*small], *way) == feed([small], *way)
    assert time.process_time() - begun < 3


def test_marks_are_those_of_the_template_or_of_the_vocabulary() -> None:
    assert marks_of("{{ x.split('[/THINK]') }}", [THINK, END_THINK]).open == "[THINK]"
    assert marks_of("", ["<seed:think>", "</seed:think>"]).close == "</seed:think>"
    assert marks_of("", []) == Marks(THINK, END_THINK)


# Token by token


PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"


@cache
def other(name: str) -> Chat:
    """Chats over our vocabulary: `house`; opened by the answer; marks spelt out; other marks."""
    text = chat().tokenizer.inner.to_str()
    match name:
        case "house":
            return chat()
        case "answer opens":
            return Chat(chat().tokenizer, PLAIN)
        case "prompt opens":
            return Chat(chat().tokenizer, PLAIN + "<think>\n")
        case "spelt":
            inner = tokenizers.Tokenizer.from_str(text.replace("think>", "thunk>"))
            return Chat(Tokenizer(inner, {"eos_token": "<|im_end|>"}), PLAIN)
        case "spelt, opened":
            return Chat(other("spelt").tokenizer, PLAIN + "<think>")
        case _:
            inner = tokenizers.Tokenizer.from_str(text)
            inner.add_tokens([AddedToken("[THINK]", special=True), AddedToken("[/THINK]", special=True)])
            return Chat(Tokenizer(inner, {"eos_token": "<|im_end|>"}), PLAIN + "{# [/THINK] #}")


NAMES = ("house", "answer opens", "prompt opens", "spelt", "spelt, opened", "magistral")


def heard(listener: Listener, ids: list[int]) -> tuple[str, str]:
    got = [listener.hear(token) for token in ids] + [listener.end()]
    return "".join(r for r, _ in got), "".join(c for _, c in got)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=150)
@given(st.data(), st.booleans())
def test_tokens_heard_one_by_one_are_what_they_are_together(name: str, data: st.DataObject, thinking: bool) -> None:
    """For any tokens: half characters, marks as tokens and spelt out, tokens that end turns, padding."""
    them = other(name)
    t = them.tokenizer
    written = [t.encode(text, special=True) for text in (*PARTS, them.marks.open, them.marks.close, "<|im_end|>", "  ")]
    broken = [i for letter in "ä½ł" if (i := t.inner.token_to_id(letter)) is not None]
    token = st.integers(0, t.vocab_size + 2) | st.sampled_from(broken)
    parts = data.draw(st.lists(st.sampled_from(written) | st.lists(token, max_size=3), max_size=8))
    ids = [i for part in parts for i in part]
    listener = them.listener(thinking)
    reasoning, content, closed = them.parse(ids, thinking)
    assert heard(listener, ids) == (reasoning, content)
    assert listener.thinking is not closed
    assert not listener.undecided
    assert listener.thinking_tokens <= len(ids)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["a", " ", "\n", "</", "1+1", "你", ">"]), max_size=6).map("".join), st.booleans())
def test_the_tokens_of_a_thought_are_counted(name: str, thought: str, goes_on: bool) -> None:
    them = other(name)
    t = them.tokenizer
    opened = them.opens(True)
    ids = t.encode(thought)
    told = [] if opened else t.encode(them.marks.open, special=True)
    end = t.encode(them.marks.close, special=True) + t.encode("answer") if goes_on else []
    listener = them.listener(True)
    heard(listener, [*told, *ids, *end])
    assert listener.thinking is not goes_on
    assert listener.thinking_tokens == len(ids)


def test_what_a_listener_knows_at_every_token() -> None:
    t = chat().tokenizer
    listener = other("answer opens").listener(True)
    assert (listener.opens, listener.closes) == (t.think, t.end_think)
    assert (other("spelt").listener(True).opens, other("spelt").listener(True).closes) == (None, None)
    known = []
    for token in (*t.encode("\n"), t.think, *t.encode("ab"), t.end_think, *t.encode("\n\nc")):
        assert token is not None
        said = listener.hear(token)
        known.append((said, listener.thinking, listener.undecided, listener.thinking_tokens))
    assert known[:2] == [(("", ""), False, True, 0), (("", ""), True, False, 0)]
    assert known[2:5] == [(("a", ""), True, False, 1), (("b", ""), True, False, 2), (("", ""), False, False, 2)]
    assert known[-1] == (("", "c"), False, False, 2)


def test_answers_are_heard_without_the_blanks_around_them() -> None:
    t = chat().tokenizer
    listener = other("prompt opens").listener(True)
    assert t.end_think is not None
    ids = [*t.encode("\n\n a\n\nb\n\n"), t.end_think, *t.encode(" \n c  d\n ")]
    said = [listener.hear(token) for token in ids]
    assert ("".join(r for r, _ in said), "".join(c for _, c in said)) == (" a\n\nb", "c  d")
    assert listener.end() == ("", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [" ", "\n", "a", "<", "ä", "</", THINK])
def test_a_token_costs_the_same_however_long_the_answer_is(name: str, text: str) -> None:
    them = other(name)
    ids = (them.tokenizer.encode(text, special=True) * 50_000)[:50_000]
    begun = time.process_time()
    reasoning, content, _ = them.parse(ids, True)
    assert heard(them.listener(True), ids) == (reasoning, content)
    assert time.process_time() - begun < 2


@given(st.lists(st.integers(0, 299), max_size=30))
def test_text_that_goes_on_behind_a_prompt_is_heard_as_it_is(ids: list[int]) -> None:
    t = chat().tokenizer
    listener = chat().verbatim()
    said = [listener.hear(token) for token in ids] + [listener.end()]
    assert {reasoning for reasoning, _ in said} == {""}
    assert "".join(text for _, text in said) == t.decode([i for i in ids if i not in t.stop_ids])


@pytest.mark.slow
@pytest.mark.skipif(hub.resolve("smollm2") is None, reason="smollm2 has not been pulled: `mull pull smollm2`")
def test_a_published_vocabulary_is_heard_as_it_is_decoded() -> None:
    """Any of its tokens in any order: halves of characters, and marks that it has no tokens for."""
    folder = hub.resolve("smollm2")
    assert folder is not None
    them, draw = Chat.load(folder), random.Random(0)
    marks = [them.tokenizer.encode(text) for text in (THINK, END_THINK, " \n", "a 你好 🙂")]
    for _ in range(300):
        parts = [draw.choice(marks) if draw.random() < 0.5 else [draw.randrange(49_152)] for _ in range(20)]
        ids = [i for part in parts for i in part]
        assert heard(them.listener(True), ids) == them.parse(ids, True)[:2]
