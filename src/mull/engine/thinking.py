"""Budgets of thoughts: when one is ended by force, and when it is kept open. Plain Python, one `Thought` per request.

A thought has at most `thinking_tokens` tokens. If the model has not ended it by then, what is forced are the closing
phrase, which counts, and the mark that ends thoughts, which does not. A budget too small for the phrase goes without
it; one of 0 ends the thought where it begins. The mark is the vocabulary's special token, never its letters; a
vocabulary without one has them spelt out, and the model knows no better either.

An answer of a given form may open a thought where one token does that. Where marks are spelt out, and the prompt does
not open the thought, it has none, unless `min_thinking_tokens` asks for one: letters of a mark are letters of no form.

Below `min_thinking_tokens` the model can neither end its thought nor its answer; an answer that would open none opens
one. Where the two contradict each other the budget holds. `max_tokens` ends an answer wherever it is: nothing is forced
to make room for an end before that.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

from mull.text.chat import Chat
from mull.types import Sampling

ALWAYS = 1 << 30  # tokens


class Heard(Protocol):
    """What is known of the answer so far: `Listener` (text/thoughts.py)."""

    @property
    def thinking(self) -> bool: ...
    @property
    def undecided(self) -> bool: ...
    @property
    def thinking_tokens(self) -> int: ...
    @property
    def pending(self) -> int:
        """Tokens that belong to the thought unless they turn out to be its end."""
        ...

    @property
    def held(self) -> int:
        """So many letters of the closing mark may have been written."""
        ...

    @property
    def broken(self) -> bool:
        """Whether half a character may be held back: then the answer has begun, though it is not known yet."""
        ...


class MarkIds:
    """How a model's marks are written in tokens. One per model.

    `special` says whether one token closes a thought; if not, its letters do.
    """

    def __init__(self, chat: Chat):
        tokenizer, self.marks = chat.tokenizer, chat.marks
        opens, closes = tokenizer.added.get(self.marks.open), tokenizer.added.get(self.marks.close)
        self.special = opens is not None and closes is not None
        spelt = [tokenizer.encode(mark, special=True) for mark in (self.marks.open, self.marks.close)]
        self.open, self.close = map(tuple, spelt)
        self.stops = tokenizer.stop_ids
        self.tokenizer = tokenizer
        self.phrase = lru_cache(64)(self._phrase)
        self.completing = lru_cache(len(self.marks.close))(self._completing)
        self.spilling = lru_cache(len(self.marks.close))(self._spilling)
        self._texts: list[str] | None = None

    def _phrase(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text))

    def _completing(self, held: int) -> tuple[int, ...]:
        """The tokens that close a thought of which so many letters of the mark are written."""
        if self.special:
            return self.close
        if self._texts is None:
            self._texts = [self.tokenizer.decode([token]) for token in range(self.tokenizer.vocab_size)]
        begun = self.marks.close[:held]
        return tuple(token for token, text in enumerate(self._texts) if self.marks.close in begun + text)

    def _spilling(self, held: int) -> tuple[int, ...]:
        """Those of them that begin the answer too, whose form did not have a say."""
        if self.special:
            return ()
        closing, begun = self.completing(held), self.marks.close[:held]
        assert self._texts is not None
        return tuple(token for token in closing if (begun + self._texts[token]).partition(self.marks.close)[2].strip())


class Thought:
    """Tell it each token after `heard` was told; ask it before the next one is drawn.

    It depends on nothing but the tokens: an answer that is taken up again goes on the same way.
    """

    def __init__(self, sampling: Sampling, heard: Heard, ids: MarkIds):
        self.heard, self.ids = heard, ids
        self.stops = (*ids.stops, *sampling.stop_tokens)
        self.formed = sampling.grammar is not None  # then there is an answer: it does not end within the thought
        self.budget = sampling.thinking_tokens
        self.phrase = ids.phrase(sampling.closing)
        if self.budget is not None and len(self.phrase) > self.budget:
            self.phrase = ()
        self.least = sampling.min_thinking_tokens if self.budget is None else min(
            sampling.min_thinking_tokens, self.budget
        )  # fmt: skip
        self._forced: Sequence[int] = ()
        self._told = self._cut = False
        self._decide()

    @property
    def over(self) -> bool:
        """Whether the answer itself has begun: what it must look like applies from here."""
        return not (self.heard.thinking or self.heard.undecided)

    def forced(self) -> int | None:
        """The next token, where it is not the model's to choose."""
        return self._forced[0] if self._forced else None

    def banned(self) -> tuple[int, ...]:
        """Tokens that must not come next. A thought that was ended by force is not opened again."""
        if self.heard.thinking and self._count < self.least:
            return (*self.ids.completing(self.heard.held), *self.stops)
        if self.heard.thinking and self.formed:
            return (*self.ids.spilling(self.heard.held), *self.stops)
        return self.ids.open if self._cut and self.over and self.ids.special else ()

    def exempt(self) -> tuple[int, ...]:
        """Tokens that no grammar forbids, where the answer may still open a thought."""
        return self.ids.open if self.heard.undecided and self.ids.special and not self.heard.broken else ()

    def steady(self) -> int:
        """For so many tokens, the next one included, `forced` and `banned` stay what they are now.

        A guess at the next tokens may be so long, and be looked at in one step.
        """
        if self._forced:
            return 1
        ends = ALWAYS if self.budget is None or self.over else self.budget - len(self.phrase) - self._count
        if self.heard.thinking and self._count < self.least:
            ends = min(ends, self.least - self._count) if self.ids.special else 1
        if self.heard.thinking and self.formed and not self.ids.special:
            ends = 1
        return max(ends, 1)

    def hear(self, token: int) -> None:
        if self._forced:
            assert token == self._forced[0]
            self._forced = self._forced[1:]
        self._told = True
        self._decide()

    @property
    def _count(self) -> int:
        return self.heard.thinking_tokens + self.heard.pending

    def _decide(self) -> None:
        """Whether something is to be forced from here on."""
        if self._cut:
            if self.over:  # a phrase may hold the mark
                self._forced = ()
        elif self.heard.thinking:
            if self.budget is not None and self._count >= self.budget - len(self.phrase):
                self._forced, self._cut = (*self.phrase, *self.ids.close), True
        elif self.heard.undecided and self.least and not self._told:
            self._forced = self.ids.open


__all__ = ["Heard", "MarkIds", "Thought"]
