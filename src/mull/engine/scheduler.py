"""Who runs next. Plain Python, no tensors: it decides over counts, and is tested in microseconds.

Continuous batching: a sequence joins whenever a row is free, and leaves when it stops; the others do not wait. Requests
with equal prompts (a group of RL samples) join together, so that their prompt is computed once.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Job:
    """One request on its way. `prompt` and `limit` count tokens; `made` those generated so far."""

    index: int  # place in the caller's list
    prompt: tuple[int, ...]
    limit: int
    made: int = 0

    @property
    def length(self) -> int:
        return len(self.prompt) + self.made


@dataclass
class Scheduler:
    """`rows` at most at a time. `running[i]` is the sequence in cache row i."""

    rows: int
    prefill_tokens: int = 8192  # of prompts computed in one go, all padded to the longest
    waiting: deque[Job] = field(default_factory=deque)
    running: list[Job] = field(default_factory=list)

    def add(self, sequences: Sequence[Job]) -> None:
        self.waiting.extend(sequences)

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def admit(self) -> list[list[Job]]:
        """Move waiting sequences to free rows, in order: groups of equal prompts, each group's rows adjacent.

        The distinct prompts, padded to the longest, stay within `prefill_tokens` (one longer prompt passes alone).
        """
        groups: list[list[Job]] = []
        longest = 0
        while self.waiting and len(self.running) < self.rows:
            nxt = self.waiting[0]
            if groups and groups[-1][0].prompt == nxt.prompt:
                groups[-1].append(self._start())
                continue
            longest = max(longest, len(nxt.prompt))
            if groups and longest * (len(groups) + 1) > self.prefill_tokens:
                break
            groups.append([self._start()])
        return groups

    def _start(self) -> Job:
        sequence = self.waiting.popleft()
        self.running.append(sequence)
        return sequence

    def record(self, stopped: Sequence[bool]) -> tuple[list[int], list[tuple[Job, bool]]]:
        """A token was made for every running sequence; `stopped` tells which made a stop token.

        Returns for each row that goes on the row it was (only rows from the end move, into the gaps), and who
        finished, with whether by a stop token.
        """
        assert len(stopped) == len(self.running)
        finished: list[tuple[Job, bool]] = []
        alive: list[int] = []
        for row, (sequence, stop) in enumerate(zip(self.running, stopped, strict=True)):
            sequence.made += 1
            if stop or sequence.made >= sequence.limit:
                finished.append((sequence, stop))
            else:
                alive.append(row)
        still = [row for row in alive if row < len(alive)]
        movers = iter(alive[len(still) :])
        stays = set(still)
        source = [row if row in stays else next(movers) for row in range(len(alive))]
        self.running = [self.running[row] for row in source]
        return source, finished

    def cancel(self) -> list[Job]:
        """Stop everything; who was waiting or running."""
        left = [*self.running, *self.waiting]
        self.running, self.waiting = [], deque()
        return left
