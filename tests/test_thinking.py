"""Budgets of thoughts count exactly, whatever the model says, however its marks are written."""

from __future__ import annotations

import random

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from test_thoughts import NAMES, other

from mull.engine.thinking import MarkIds, Thought
from mull.text.chat import Chat
from mull.text.thoughts import Listener
from mull.types import Grammar, Sampling

IDS = {name: MarkIds(other(name)) for name in NAMES}
# Half a character before a spelt mark is shown together with the mark's first letter, and counted with it.
WORDS = [i for i in range(other("spelt").tokenizer.vocab_size) if "\ufffd" not in other("spelt").tokenizer.decode([i])]


class Answer:
    """What an engine does: ask, draw, tell."""

    def __init__(self, name: str, sampling: Sampling):
        self.listener: Listener = other(name).listener(True)
        self.thought = Thought(sampling, self.listener, IDS[name])
        self.tokens: list[int] = []
        self.forced: list[int] = []

    def say(self, wanted: int) -> bool:
        """Whether that is what came next; False where it was banned, and nothing came."""
        forced = self.thought.forced()
        if forced is None and wanted in self.thought.banned():
            return False
        token = wanted if forced is None else forced
        self.forced += [] if forced is None else [token]
        self.tokens.append(token)
        self.listener.hear(token)
        self.thought.hear(token)
        return token == wanted


def wish(name: str, draw: random.Random) -> int:
    """A token: any, often one that opens or closes a thought or part of such."""
    ids = IDS[name]
    likely = (*ids.open, *ids.close, *other(name).tokenizer.encode("<</ >k> \n"))
    return draw.choice(likely if draw.random() < 0.5 else WORDS if "spelt" in name else range(300))


def spoken(name: str, sampling: Sampling, count: int, draw: random.Random) -> Answer:
    answer = Answer(name, sampling)
    stops = {*other(name).tokenizer.stop_ids, *sampling.stop_tokens}
    while len(answer.tokens) < count:
        answer.say(wish(name, draw))
        if answer.tokens and answer.tokens[-1] in stops:
            break
    answer.listener.end()
    return answer


BUDGETS = st.none() | st.integers(0, 12)
PHRASES = st.sampled_from(["", "", "x", " so", "\n\nTime is up.\n", "a</think>b", "<"])


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(BUDGETS, st.integers(0, 12), PHRASES, st.randoms(use_true_random=False))
def test_a_thought_has_at_most_its_budget_and_at_least_its_least(
    name: str, budget: int | None, least: int, closing: str, draw: random.Random
) -> None:
    sampling = Sampling(thinking_tokens=budget, min_thinking_tokens=least, closing=closing)
    answer = spoken(name, sampling, 40, draw)
    length = answer.listener.thinking_tokens
    if budget is not None and answer.thought.forced() is None:  # else a spelt mark was not finished
        assert length <= budget
    _, _, closed = other(name).parse(answer.tokens, True)
    if closed and len(answer.tokens) == 40:
        assert length >= min(least, 40 if budget is None else budget) or closing == "a</think>b"
    if least:  # kept open, so there is one
        assert answer.listener.thinking or length or budget == 0


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("closing", ["", " Enough.", "a phrase of very many tokens indeed"])
@pytest.mark.parametrize("budget", [0, 1, 5, 9])
def test_who_does_not_stop_is_stopped_at_the_budget_with_the_phrase(name: str, budget: int, closing: str) -> None:
    them, ids = other(name), IDS[name]
    sampling = Sampling(thinking_tokens=budget, closing=closing)
    answer = Answer(name, sampling)
    word = them.tokenizer.encode("a")[0]
    if not them.opens(True):
        for token in ids.open:
            assert answer.say(token)
    begun = len(answer.tokens)
    while answer.listener.thinking:
        answer.say(word)
    phrase = them.tokenizer.encode(closing)
    phrase = phrase if len(phrase) <= budget else []
    assert answer.tokens[begun:] == [word] * (budget - len(phrase)) + phrase + list(ids.close)
    assert answer.listener.thinking_tokens == budget
    assert answer.thought.over and answer.thought.forced() is None
    assert not ids.special or ids.close == (them.tokenizer.added[them.marks.close],)


def test_a_special_token_ends_a_thought_and_never_its_letters() -> None:
    letters = other("house").tokenizer.encode("</think>")
    assert IDS["house"].close == (4,) and len(letters) > 1
    answer = Answer("house", Sampling(thinking_tokens=20))
    for token in letters:
        assert answer.say(token)
    assert answer.listener.thinking and answer.listener.thinking_tokens == len(letters)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=30)
@given(BUDGETS, st.integers(0, 12), PHRASES, st.randoms(use_true_random=False))
def test_nothing_matters_but_the_tokens(
    name: str, budget: int | None, least: int, closing: str, draw: random.Random
) -> None:
    """Taken up in the middle it goes on the same; and for `steady` tokens nothing changes, whatever they are."""
    sampling = Sampling(thinking_tokens=budget, min_thinking_tokens=least, closing=closing)
    answer = Answer(name, sampling)
    promised, before = 0, ()
    for _ in range(25):
        again = Answer(name, sampling)
        for token in answer.tokens:
            assert again.say(token)
        asked = (answer.thought.forced(), answer.thought.banned(), answer.thought.exempt(), answer.thought.steady())
        assert asked == (
            again.thought.forced(), again.thought.banned(), again.thought.exempt(), again.thought.steady()
        )  # fmt: skip
        if promised > 0 and answer.listener.thinking:
            assert asked[:2] == before[:2]
        else:
            promised = asked[-1]
        before = asked
        answer.say(wish(name, draw))
        promised -= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_thought_that_was_cut_is_not_opened_again(name: str) -> None:
    answer = Answer(name, Sampling(thinking_tokens=0))
    for token in () if other(name).opens(True) else IDS[name].open:
        assert answer.say(token)
    while not answer.thought.over:
        answer.say(50)
    assert answer.thought.banned() == (IDS[name].open if IDS[name].special else ())
    free = Answer(name, Sampling(thinking_tokens=30))
    for token in (*(() if other(name).opens(True) else IDS[name].open), *IDS[name].close):
        assert free.say(token)
    assert free.thought.over and free.thought.banned() == ()


@pytest.mark.parametrize("name", NAMES)
def test_neither_thought_nor_answer_ends_below_the_least(name: str) -> None:
    them, ids = other(name), IDS[name]
    answer = Answer(name, Sampling(min_thinking_tokens=4, stop_tokens=(77,)))
    while not answer.listener.thinking:  # opened by force
        answer.say(50)
    ends = {*them.tokenizer.stop_ids, 77}
    for _ in range(4):
        assert ends <= {*answer.thought.banned()}
        answer.say(50)
    assert answer.thought.banned() == ()
    for token in ids.close:
        assert answer.say(token)
    assert answer.thought.over


def test_spelt_marks_are_not_completed_below_the_least_whatever_tokens_would() -> None:
    them = other("spelt, opened")
    answer = Answer("spelt, opened", Sampling(min_thinking_tokens=30))
    *begin, last = them.tokenizer.encode("</think>", special=True)
    for token in begin:
        assert answer.say(token)
    written = {them.tokenizer.decode([token]) for token in answer.thought.banned()}
    assert {text for text in written if text.startswith(">")} and not answer.say(last)


def test_where_no_thought_is_asked_for_nothing_is_forced() -> None:
    listener = other("house").listener(False)
    thought = Thought(Sampling(thinking=False, thinking_tokens=0, min_thinking_tokens=5), listener, IDS["house"])
    assert thought.over and thought.forced() is None and thought.banned() == ()


def test_while_a_thought_may_still_be_opened_no_grammar_forbids_it() -> None:
    answer = Answer("answer opens", Sampling())
    assert not answer.thought.over and answer.thought.exempt() == (3,)
    answer.say(other("house").tokenizer.encode("\n")[0])
    assert answer.thought.exempt() == (3,)
    answer.say(60)
    assert answer.thought.over and answer.thought.exempt() == ()


def test_half_a_character_begins_an_answer() -> None:
    first, *_ = other("house").tokenizer.encode("é")
    for before in ("", "\n"):
        answer = Answer("answer opens", Sampling(grammar=Grammar("json")))
        for token in (*other("house").tokenizer.encode(before), first):
            assert answer.say(token)
        assert answer.thought.heard.undecided and answer.thought.exempt() == ()


def test_a_token_does_not_close_a_thought_and_begin_an_answer_of_a_given_form() -> None:
    ids = MarkIds(other("spelt, opened"))
    ids._texts = ["<", "/think>", "k> \n", "k>Hello"]  # those of an imagined vocabulary
    assert ids.spilling(len("</thin")) == (3,)
    assert ids.spilling(0) == ()
    assert MarkIds(other("house")).spilling(0) == ()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 20), st.integers(1, 20))
def test_max_tokens_cuts_a_thought_and_forces_nothing(budget: int, count: int) -> None:
    assume(count < budget)
    answer = Answer("house", Sampling(thinking_tokens=budget))
    for _ in range(count):
        assert answer.say(60)
    assert not answer.forced and answer.listener.thinking


def test_ids_are_those_of_the_chat() -> None:
    chat: Chat = other("magistral")
    ids = MarkIds(chat)
    assert [chat.tokenizer.decode(part) for part in (ids.open, ids.close)] == ["[THINK]", "[/THINK]"]
    assert ids.special and len(ids.close) == 1
    assert not IDS["spelt"].special and len(IDS["spelt"].close) > 1


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_of_a_given_form_does_not_end_within_its_thought(name: str) -> None:
    """Else there would be none, and what was asked for is a form."""
    stop, letter = other(name).tokenizer.stop_ids[0], other(name).tokenizer.encode("a")[0]
    for grammar, ends in ((Grammar("json"), False), (None, True)):
        answer = Answer(name, Sampling(grammar=grammar))
        for token in IDS[name].open if answer.thought.exempt() or not answer.listener.thinking else ():
            answer.say(token)
        assert answer.listener.thinking
        assert answer.say(letter)
        assert (stop not in answer.thought.banned()) is ends
        for token in IDS[name].close:
            assert answer.say(token)
        assert stop not in answer.thought.banned()  # from here the grammar says
