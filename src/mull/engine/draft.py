"""Guesses at the next tokens, and whether guessing pays. Pure Python, no tensors.

A step can look at several tokens of one answer at once. Those that are what would have been drawn anyway are kept: the
randomness of a token depends on its position alone, so guesses change how fast an answer comes, never what it says.

`NGrams` guesses that what followed the last few tokens before follows them again (prompt lookup: Saxena 2023;
arXiv 2304.04487). `Costs` learns from the engine's steps what a row more takes, `Worth` for one answer how often
guesses were right; drafts are as long as these two say, which is often not at all.

Where it proposes nothing, the model's own MTP layer may have a guess at one token (arXiv 2412.19437, 5.4.3). It costs
a pass whether or not it is right; `Outlook` says whether that pays.
"""

from __future__ import annotations

from collections.abc import Iterable

SIZES = (3, 2)  # tokens that must have come before, the longest first; each costs some 150 bytes a token
LENGTHS = (1, 2, 3, 4, 6, 8)  # of drafts
LEAST = 1.05  # times as many tokens a second, or it is not worth it
MEMORY = 0.95  # of what was learnt, at each step
SPREAD = 1e-4  # of rows' squares: steps of numbers of rows that differ less say nothing of a row's cost
DOUBT = 16, 1024  # tokens of an answer without a draft before the next attempt, at first and at most
ATTEMPT = 2  # tokens that are guessed then
TRIAL = 64  # guesses of the model's own before they are judged
LONG = 0.995  # of what they saved and took is remembered, at each step
REST = 512, 16_384  # steps before they are asked for again, at first and at most
PLAIN = 32  # one step of so many goes without them: what a row costs is seen where steps differ


class NGrams:
    """An answer's tokens, its prompt's included, and where each run of a few stood last."""

    def __init__(self, tokens: Iterable[int] = ()):
        self.tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}  # where what followed stands
        for token in tokens:
            self.hear(token)

    def hear(self, token: int) -> None:
        at = len(self.tokens)
        for size in SIZES:
            if size <= at:
                self._behind[tuple(self.tokens[at - size :])] = at
        self.tokens.append(token)

    def propose(self, count: int) -> list[int]:
        """At most `count` tokens; none where nothing like it came before. What repeats itself goes on doing so."""
        for size in SIZES:
            at = self._behind.get(tuple(self.tokens[-size:])) if size < len(self.tokens) else None
            if at is not None:
                period = len(self.tokens) - at
                return [self.tokens[at + i % period] for i in range(count)]
        return []


class Costs:
    """Seconds of a step over its rows, as a line through the last steps, the older ones counting less.

    While all steps have as many rows the line's slope is the one that was seen last.
    """

    def __init__(self) -> None:
        self._n = self._rows = self._seconds = self._squares = self._products = 0.0
        self._slope: float | None = None

    def tell(self, rows: int, seconds: float) -> None:
        self._n = self._n * MEMORY + 1
        self._rows = self._rows * MEMORY + rows
        self._seconds = self._seconds * MEMORY + seconds
        self._squares = self._squares * MEMORY + rows * rows
        self._products = self._products * MEMORY + rows * seconds
        spread = self._squares - self._rows * self._rows / self._n
        if spread > SPREAD * self._squares:
            self._slope = max((self._products - self._rows * self._seconds / self._n) / spread, 0.0)

    def of_a_row(self, rows: int) -> float | None:
        """What one more costs, in steps of so many; None where no two steps were different yet."""
        if self._slope is None:
            return None
        step = self.seconds(rows)
        return self._slope / step if step > 0 else None

    def seconds(self, rows: int) -> float:
        """Of a step of so many."""
        return (self._seconds + (self._slope or 0.0) * (rows * self._n - self._rows)) / self._n if self._n else 0.0


class Worth:
    """How long drafts of one answer are to be."""

    def __init__(self, costs: Costs):
        self.costs = costs
        self.rate = 0.5  # of guesses that are right where those before them were
        self.wait = DOUBT[0]
        self._idle = 0

    def length(self, rows: int, most: int) -> int:
        """Of the draft for the next step, which has `rows` rows without it; `most` is what there is room for."""
        best, gain = 0, LEAST
        cost = self.costs.of_a_row(rows)
        if cost is None:  # nothing is known before both were tried
            best = ATTEMPT if self._idle else 0
        else:
            for count in LENGTHS:
                more = (1 + self._right(count) / rows) / (1 + count * cost)
                if more > gain:
                    best, gain = count, more
        if not best and self._idle >= self.wait:
            best = ATTEMPT
        return min(best, most)

    def _right(self, count: int) -> float:
        """Guesses that will be right of so many."""
        return sum(self.rate**i for i in range(1, count + 1))

    def tell(self, drafted: int, accepted: int) -> None:
        """What came of a step, of a draft of 0 too."""
        if not drafted:
            self._idle += 1
            return
        tried = accepted + (accepted < drafted)
        weight = MEMORY**tried
        self.rate = self.rate * weight + accepted / tried * (1 - weight)
        if self._idle >= self.wait:  # an attempt: longer doubts after each that fails
            self.wait = DOUBT[0] if accepted == drafted else min(2 * self.wait, DOUBT[1])
        self._idle = 0


class Guesser:
    """One answer's drafts: ask for one before a step, say what came of it, and tell every token.

    A draft must be no longer than what decides about its tokens is known beforehand: `Thought.steady() - 1` where a
    thought has a budget, and nothing under a grammar or penalties, which depend on the tokens before.
    """

    def __init__(self, costs: Costs, prompt: Iterable[int]):
        self.worth, self.grams = Worth(costs), NGrams(prompt)
        self._drafted = 0

    def guess(self, rows: int, most: int, ahead: int | None = None) -> list[int]:
        """At most `most` tokens, for a step of `rows` rows without them; `ahead` is the model's own guess."""
        count = self.worth.length(rows, most) if most > 0 else 0
        guessed = self.grams.propose(count) if count else []
        self._drafted = len(guessed)
        return guessed if guessed or ahead is None or most < 1 else [ahead]

    def hear(self, tokens: Iterable[int]) -> None:
        """What the step drew: guesses that were right, and one token more."""
        heard = list(tokens)
        for token in heard:
            self.grams.hear(token)
        self.worth.tell(self._drafted, min(max(len(heard) - 1, 0), self._drafted))
        self._drafted = 0


class Outlook:
    """Whether the model's own guesses pay, of all answers together: seconds that they save against seconds they take.

    Every guess counts, drafted or not: a right one saves an answer its part of a step, and each costs a row more.
    Where it does not pay no one is asked for, but in attempts that become rarer.
    """

    def __init__(self, costs: Costs):
        self.costs = costs
        self.on = True
        self.passes = 0
        self.guesses = 0  # since it was switched on
        self._new = self._right = 0  # of them, those of this step
        self._saved = self._spent = 0.0
        self._steps = 0  # since it was switched on or off
        self._rest = REST[0]

    @property
    def wanted(self) -> bool:
        """Whether guesses are to be drafted in the next step."""
        return self._steps % (2 if self.costs.of_a_row(1) is None else PLAIN) != 0

    def heard(self, right: bool) -> None:
        """What came of a guess."""
        self.guesses += 1
        self._new += 1
        self._right += right

    def tell(self, rows: int, seconds: float | None) -> None:
        """A step is over, of `rows` answers, whose guesses were heard of; and how long it took to make the next ones,
        None where none were made."""
        self._steps += 1
        new, right, self._new, self._right = self._new, self._right, 0, 0
        if not self.on:
            if self._steps >= self._rest:
                self._switch(True)
            return
        self.passes += seconds is not None
        step = self.costs.seconds(rows)
        saved = right * step / rows - new * (self.costs.seconds(rows + 1) - step) if rows else 0.0
        self._saved = self._saved * LONG + saved
        self._spent = self._spent * LONG + (seconds or 0.0)
        if self.guesses >= TRIAL and self._saved < self._spent:
            self._rest = REST[0] if self._steps > REST[0] else min(2 * self._rest, REST[1])
            self._switch(False)

    def _switch(self, on: bool) -> None:
        self.on, self.guesses, self._steps, self._saved, self._spent = on, 0, 0, 0.0, 0.0


__all__ = ["Costs", "Guesser", "NGrams", "Outlook", "Worth"]
