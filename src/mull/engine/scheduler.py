"""Who runs next. Plain Python, no tensors: it decides over counts, and is tested in microseconds.

Continuous batching: a sequence joins whenever a row is free, and leaves when it stops; the others do not wait. Every
step computes one token of each running sequence, and as many tokens of prompts as its budget allows: long prompts come
in chunks, so that nobody waits long for a neighbour's. A prompt's beginning that is in the cache is not computed.

When pages run out, the youngest sequence is put back and begins again later, behind what it has; its full pages stay
known as long as they are not needed. So the oldest always comes to its end, and everyone after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from mull.engine.pages import PAGE, Pages, Place


@dataclass(eq=False)
class Job:
    """One sequence. `tokens` are those of its prompt and its answer so far; whoever draws appends to them.

    `draft` are guesses behind the last token, computed with it and then forgotten.
    """

    name: Hashable
    tokens: list[int]
    salt: str = ""
    pages: list[int] = field(default_factory=list)
    done: int = 0  # tokens that are in the cache
    known: int = 0  # of its pages, those that others can find
    place: Place = ""  # behind the last of these
    found: int | None = None  # tokens that were in the cache when it first joined
    draft: list[int] = field(default_factory=list)

    @property
    def left(self) -> int:
        """Tokens that are to be computed before the next can be drawn."""
        return len(self.tokens) - self.done


@dataclass(frozen=True)
class Part:
    """`count` tokens of a sequence that one step computes, those of its draft included.

    `joins` where it is the sequence's first: what stands before may be computed by the same step for another.
    """

    job: Job
    begin: int
    count: int
    joins: bool = False

    @property
    def draws(self) -> bool:
        """Whether a token can be drawn behind it."""
        return self.begin + self.count >= len(self.job.tokens)


class Scheduler:
    """At most `rows` sequences at a time over `pages`; a step computes `chunk` tokens of prompts beside running
    answers, and `prefill` where there are none."""

    def __init__(self, rows: int, pages: Pages, chunk: int = 256, prefill: int = 1024):
        assert rows > 0 and chunk > 0 and prefill > 0
        self.rows, self.pages, self.chunk, self.prefill = rows, pages, chunk, prefill
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self.preemptions = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, job: Job) -> None:
        self.waiting.append(job)

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many tokens can ever come to its end."""
        return _pages(tokens) < self.pages.limit

    def plan(self) -> list[Part]:
        """What the next step computes; pages for it are held. Empty only where nothing is to be done."""
        parts: list[Part] = []
        drawing = sum(job.left == 1 for job in self.running)
        budget = self.chunk if drawing else self.prefill
        at = 0
        while at < len(self.running):  # which becomes shorter where the last must make room
            job = self.running[at]
            left = len(job.tokens) - job.done
            count = left + len(job.draft) if left == 1 else min(left, budget)
            if count and self._reserve(job, count):
                parts.append(self._part(job, count))
                budget -= count if left > 1 else 0
            at += 1
        while self.waiting and len(self.running) < self.rows and budget > 0:
            part = self._join(budget)
            if part is None:
                break
            parts.append(part)
            budget -= part.count
        assert parts or not self.busy
        return parts

    def _reserve(self, job: Job, count: int) -> bool:
        """Pages for `count` more tokens of a running job. Younger ones give theirs up; False: it gave up its own."""
        wanted = _pages(job.done + count) - len(job.pages)
        if wanted <= 0:
            return True
        while (taken := self.pages.take(wanted)) is None:
            youngest = self.running[-1]
            self._put_back(youngest)
            if youngest is job:
                return False
        job.pages += taken
        return True

    def _put_back(self, job: Job) -> None:
        self.preemptions += 1
        self.leave(job)
        self.waiting.appendleft(job)

    def _join(self, budget: int) -> Part | None:
        """The first of those that wait, where there are pages for all it has, and some to spare for those that run."""
        job = self.waiting[0]
        found, place = self.pages.find(job.tokens, job.salt)
        wanted = _pages(len(job.tokens) + 1) - len(found)
        if self.running and wanted + len(self.running) > self.pages.free:
            self.pages.drop(found)
            return None
        self.waiting.popleft()
        job.pages, job.known, job.place, job.done = found, len(found), place, len(found) * PAGE
        if job.found is None:
            job.found = job.done
        self.running.append(job)
        count = min(job.left, budget)
        reserved = self._reserve(job, count)
        assert reserved, "a sequence that does not fit was let in"
        return self._part(job, count, joins=True)

    def _part(self, job: Job, count: int, joins: bool = False) -> Part:
        """Pages that this step fills are known at once: the step writes all before it reads any."""
        part = Part(job, job.done, count, joins)
        full = min(job.done + count, len(job.tokens)) // PAGE
        for at in range(job.known, full):
            tokens = job.tokens[at * PAGE : (at + 1) * PAGE]
            job.place = self.pages.know(job.pages[at], job.place, tokens)
        job.known = max(job.known, full)
        return part

    def computed(self, parts: Sequence[Part]) -> None:
        """The step is done, what it drew is appended: behind accepted guesses one token that is not computed yet."""
        for part in parts:
            part.job.done = min(part.begin + part.count, len(part.job.tokens) - 1)
            part.job.draft = []

    def leave(self, job: Job) -> None:
        """A running or waiting job is over; its pages are free, or known to others."""
        if job in self.running:
            self.running.remove(job)
        elif job in self.waiting:
            self.waiting.remove(job)
        self.pages.drop(job.pages)
        job.pages, job.done, job.known, job.draft = [], 0, 0, []

    def restart(self, pages: Pages) -> None:
        """All begin again behind what they have, over new pages: what was computed is gone."""
        jobs = [*self.running, *self.waiting]
        for job in jobs:
            self.leave(job)
        self.pages, self.waiting = pages, deque(jobs)


def _pages(tokens: int) -> int:
    return -(-tokens // PAGE)


__all__ = ["Job", "Part", "Scheduler"]
