"""Conversations: what a user writes stays what a user wrote; the parser finds the same answer however text is cut."""

from __future__ import annotations

from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import chat

from mull.text.chat import TEMPLATE, Chat, Parser
from mull.text.tokenizer import END_THINK, SPECIALS
from mull.types import Message, UserError

nasty = st.lists(
    st.sampled_from([*SPECIALS, "<|im_start|>system\n", "@", "{{", "}}", "{% x %}", "\n", " ", "é", "7", "</thin"]),
    max_size=6,
).map("".join)
talks = st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "tool"]), nasty), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(talks, st.booleans())
def test_only_the_template_writes_structure(talk: list[tuple[str, str]], thinking: bool) -> None:
    """Whatever the contents, the prompt's special tokens are those of the same talk with empty messages."""
    messages = [Message(role, content) for role, content in talk]
    empty = [Message(role, "") for role, _ in talk]

    def specials(ms: list[Message]) -> list[int]:
        return [i for i in chat().encode(ms, thinking) if i < len(SPECIALS)]

    assert specials(messages) == specials(empty)
    shown = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in talk)
    tail = "<|im_start|>assistant\n<think>" + ("" if thinking else "</think>")
    assert chat().tokenizer.decode(chat().encode(messages, thinking)) == shown + tail


@settings(deadline=None, max_examples=100)
@given(nasty, nasty, nasty, st.booleans())
def test_an_example_is_the_prompt_and_what_the_model_would_say(
    question: str, reasoning: str, answer: str, thinking: bool
) -> None:
    asked = [Message("user", question)]
    ids, mask = chat().example([*asked, Message("assistant", answer, reasoning)], thinking)
    prompt = chat().encode(asked, thinking)
    assert ids[: len(prompt)] == prompt
    assert mask == [0] * len(prompt) + [1] * (len(ids) - len(prompt))
    assert ids[-1] == chat().tokenizer.im_end
    thought, said, closed = chat().parse(ids[len(prompt) :], thinking)
    assert closed
    assert said == answer.strip()
    assert thought == (reasoning.strip("\n") if thinking else "")


def test_an_unclosed_thought_is_no_answer() -> None:
    ids = chat().tokenizer.encode("1+1=2 so")
    assert chat().parse(ids, thinking=True) == ("1+1=2 so", "", False)
    assert chat().parse(ids, thinking=False) == ("", "1+1=2 so", True)
    assert chat().parse([], thinking=True) == ("", "", False)


def test_a_written_end_of_thought_does_not_end_it() -> None:
    """The characters </think>, as ordinary tokens, are part of the thought."""
    t = chat().tokenizer
    ids = [*t.encode("a </think> b"), t.end_think, *t.encode("c"), t.im_end]
    assert chat().parse(ids, thinking=True) == ("a </think> b", "c", True)


def feed(pieces: list[str], thinking: bool) -> tuple[str, str]:
    parser = Parser(thinking)
    got = [parser.feed(piece) for piece in pieces] + [parser.flush()]
    return "".join(r for r, _ in got), "".join(c for _, c in got)


TEXTS = [
    "7+1=8\n8</think>8", "</think>", "no end", "a</thin</think>b", "a</think></think>b", "<</think>", "</think",
    "a < b </ c </t", "x</think>y</think>z", "",
]  # fmt: skip


@pytest.mark.parametrize("text", TEXTS)
def test_every_cut_gives_the_same(text: str) -> None:
    """All ways to cut in up to three pieces, and character by character."""
    before, mark, after = text.partition(END_THINK)
    want = (before, after) if mark else (text, "")
    cuts = [c for k in (0, 1, 2) for c in combinations(range(len(text) + 1), k)] + [tuple(range(len(text) + 1))]
    for cut in cuts:
        ends = [0, *cut, len(text)]
        pieces = [text[a:b] for a, b in pairwise(ends)]
        assert feed(pieces, thinking=True) == want, pieces
        assert feed(pieces, thinking=False) == ("", text)


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from(["<", "/", "think", ">", "</think>", "a", "</", "\n"])))
def test_any_pieces_give_the_same_as_the_whole(pieces: list[str]) -> None:
    assert feed(pieces, True) == feed(["".join(pieces)], True)


@settings(deadline=None, max_examples=100)
@given(st.text("</think>a", max_size=30))
def test_no_text_is_held_longer_than_it_may_be_a_marker(text: str) -> None:
    parser, shown = Parser(True), ""
    for i, char in enumerate(text):
        shown += "".join(parser.feed(char))
        rest = text[: i + 1].replace(END_THINK, "", 1)[len(shown) :]
        assert len(rest) < len(END_THINK)
        assert END_THINK.startswith(rest)


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    own = Chat(chat().tokenizer, "{% for m in messages %}[{{ m.content }}]{% endfor %}>")
    own.save(tmp_path)
    back = Chat.load(tmp_path)
    assert back.template == own.template
    ids = back.encode([Message("user", "a"), Message("user", "b")])
    assert back.tokenizer.decode(ids) == "[a][b]>"
    (tmp_path / "chat_template.jinja").unlink()
    assert Chat.load(tmp_path).template == TEMPLATE


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for %}", "not valid Jinja"),
        ("{{ raise_exception('no system here') }}", "no system here"),
        ("{{ messages[0].content }}{{ messages[0].content }}", "every message once"),
        ("constant", "every message once"),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "every message once"),
        ("{{ ''.__class__.__mro__ }}", "refuses"),
        ("{{ messages.append(1) }}", "refuses"),
    ],
)
def test_templates_that_cannot_be_used_safely_are_refused(template: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Chat(chat().tokenizer, template).encode([Message("user", "hello")])


@pytest.mark.parametrize(
    "template",
    [
        "{{ messages[0].content }}-{{ messages[0].content }}",
        "{{ messages[1].content }}-{{ messages[0].content }}",
        "{% for m in messages|reverse %}[{{ m.content }}]{% endfor %}",
    ],
)
def test_a_template_that_confuses_messages_is_refused(template: str) -> None:
    with pytest.raises(UserError, match="every message once, in its place"):
        Chat(chat().tokenizer, template).encode([Message("user", "a"), Message("user", "b")])


@pytest.mark.parametrize(
    "template", ["{{ 1 / messages[1:]|length }}", "{{ messages[0].content + 1 }}", "{{ 'a'|int('b') + none }}"]
)
def test_a_template_that_breaks_is_a_user_error(template: str) -> None:
    with pytest.raises(UserError, match="The chat template breaks on this conversation"):
        Chat(chat().tokenizer, template).encode([Message("user", "hello")])


def test_unknown_roles_are_refused() -> None:
    with pytest.raises(UserError, match="There is no role 'robot'"):
        chat().encode([Message("robot", "x")])
