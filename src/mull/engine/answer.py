"""One request on its way through the engine: what it has so far, what may come next, and when it ends."""

from __future__ import annotations

import time
from collections.abc import Hashable
from dataclasses import dataclass, field

from mull.engine.draft import Guesser
from mull.engine.grammar import Matcher
from mull.engine.logits import Tally, penalised
from mull.engine.sampler import Draw, stream_of, uniform
from mull.engine.scheduler import Job
from mull.engine.thinking import MarkIds, Thought
from mull.text.chat import Chat
from mull.text.stops import StopTexts
from mull.text.thoughts import Listener, Verbatim
from mull.types import Completion, Delta, Finish, Request

UNTOLD = 64  # tokens of which nothing can be shown: they are told then, so that no Delta is long
Alternatives = tuple[tuple[int, float], ...]


@dataclass
class _News:
    """What came since it was last told."""

    reasoning: list[str] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    at: int = 0  # tokens told of


class Answer:
    """`limit` tokens at most. With `listen` its text is put together as it comes, for whoever streams.

    Stop texts are looked for in the answer, not in the thought: a thought may hold anything.
    """

    def __init__(
        self, name: Hashable, request: Request, chat: Chat, marks: MarkIds, limit: int, salt: str = "",
        listen: bool = False,
    ):  # fmt: skip
        self.name, self.request, self.chat, self.limit = name, request, chat, limit
        sampling = request.sampling
        self.stream = stream_of(sampling.seed, request.key)
        self.job = Job(self, [*request.tokens], salt)
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.routes: list[int] = []
        self.alternatives: list[Alternatives] = []
        self.finish: Finish | None = None
        self.stopped_by: str | int | None = None
        self.error: str | None = None
        self.seconds = self.first_seconds = 0.0
        self.began = time.perf_counter()
        own = () if sampling.ignore_end else chat.tokenizer.stop_ids
        self.stops = frozenset((*own, *sampling.stop_tokens))
        self.listener: Listener | Verbatim | None = None
        self.thought: Thought | None = None
        self.matcher: Matcher | None = None  # set before it draws, where the sampling has a grammar
        guided = sampling.thinking_tokens is not None or sampling.min_thinking_tokens or sampling.grammar
        if sampling.verbatim:
            self.listener = chat.verbatim()
        elif listen or sampling.stop or guided:
            self.listener = chat.listener(sampling.thinking, request.tokens)
            self.thought = Thought(sampling, self.listener, marks) if guided else None
        self.stop_texts = StopTexts(sampling.stop)
        if self.listener is not None:
            self.listener.stop_at(self.stop_texts)
        self.tally = Tally(request.tokens) if penalised(sampling) else None
        self._reasoning: list[str] = []
        self._text: list[str] = []
        self._news = _News()
        self.guesser: Guesser | None = None  # where drafts are tried
        self.followed = False  # the model's MTP layer looks ahead of it
        self.ahead: int | None = None  # its guess at the next token

    @property
    def key(self) -> tuple[int, ...]:
        return self.request.key

    def draws(self, rows: int) -> list[Draw]:
        """What decides about the next `rows` tokens: more than one where a draft is looked at."""
        sampling = self.request.sampling
        at = len(self.tokens)
        points = [uniform(self.stream, at + i) if sampling.temperature > 0 else 0.0 for i in range(rows)]
        if (thought := self.thought) is None:
            return [Draw(sampling, point, tally=self.tally, grammar=self.matcher) for point in points]
        assert rows <= thought.steady()
        forced, banned = thought.forced(), thought.banned()
        if self.matcher is None or thought.heard.thinking:
            return [Draw(sampling, point, forced, self.tally, banned) for point in points]
        assert rows == 1
        return [Draw(sampling, points[0], forced, self.tally, banned, self.matcher, thought.exempt())]

    @property
    def foreseeable(self) -> bool:
        """Whether it ever has tokens that may be guessed ahead."""
        return self.tally is None and self.matcher is None

    def guessable(self) -> int:
        """Tokens that may be guessed ahead: nothing that is decided anew at each of them may be under way."""
        if not self.foreseeable:
            return 0
        room = self.limit - len(self.tokens) - 1
        return room if self.thought is None else min(room, self.thought.steady() - 1)

    def hear(self, token: int, logprob: float, alternatives: Alternatives = (), route: int | None = None) -> None:
        """Take the next token; `finish` is set where it is the last."""
        if not self.tokens:
            self.first_seconds = time.perf_counter() - self.began
        self.tokens.append(token)
        self.job.tokens.append(token)
        self.logprobs.append(logprob)
        if self.request.sampling.top_logprobs:
            self.alternatives.append(alternatives)
        if route is not None:
            self.routes.append(route)
        if self.tally is not None:
            self.tally.hear(token)
        if self.listener is not None:
            meant = self.thought is None or self.thought.forced() is None  # else it opens or closes a thought
            said = meant and not (self.listener.thinking or token in self.stops)
            self._say(*self.listener.hear(token))
            if self.matcher is not None and said and not self.listener.thinking:
                self.error = self.matcher.accept(token)
        if self.thought is not None:
            self.thought.hear(token)
        if self.stop_texts.hit is not None:
            self.end("stop", self.stop_texts.hit)
        elif token in self.stops:
            self.end("stop", token)
        elif len(self.tokens) >= self.limit:
            self.end("length")

    def _say(self, reasoning: str, text: str) -> None:
        if reasoning:
            self._reasoning.append(reasoning)
            self._news.reasoning.append(reasoning)
        if text:
            self._text.append(text)
            self._news.text.append(text)

    def end(self, finish: Finish, stopped_by: str | int | None = None) -> None:
        self.finish, self.stopped_by = finish, stopped_by
        self.seconds = time.perf_counter() - self.began
        if self.listener is not None:
            self._say(*self.listener.end())
            if self.stop_texts.hit is not None:  # what was held back may have completed one
                self.finish, self.stopped_by = "stop", self.stop_texts.hit

    def take_up(self, tokens: list[int], logprobs: list[float], routes: list[int]) -> None:
        """An earlier process got so far: as if it had been drawn here."""
        for i, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            if self.finish is None:
                self.hear(token, logprob, route=routes[i] if routes else None)

    def delta(self, version: int = 0) -> Delta | None:
        """What is new, with the completion where it has ended; None where nothing can be shown yet."""
        news = self._news
        if not (news.reasoning or news.text or self.finish or len(self.tokens) - news.at >= UNTOLD):
            return None
        begin, self._news = news.at, _News(at=len(self.tokens))
        return Delta(
            "".join(news.text), "".join(news.reasoning), self.completion(version) if self.finish else None,
            tuple(self.tokens[begin:]), tuple(self.logprobs[begin:]), tuple(self.alternatives[begin:]),
        )  # fmt: skip

    def completion(self, version: int = 0) -> Completion:
        assert self.finish is not None
        if self.listener is None:
            reasoning, text, _ = self.chat.parse(self.tokens, self.request.sampling.thinking, self.request.tokens)
            thinking = self._count()
        else:
            reasoning, text = "".join(self._reasoning), "".join(self._text)
            thinking = self.listener.thinking_tokens
        return Completion(
            tuple(self.tokens), tuple(self.logprobs), self.finish, text, reasoning, len(self.request.tokens), version,
            self.seconds, thinking, routes=tuple(self.routes), alternatives=tuple(self.alternatives),
            cached_tokens=self.job.found or 0, stopped_by=self.stopped_by, first_seconds=self.first_seconds,
        )  # fmt: skip

    def _count(self) -> int:
        """Tokens of the thought, where nobody listened."""
        listener = self.chat.listener(self.request.sampling.thinking, self.request.tokens)
        for token in self.tokens:
            if not (listener.thinking or listener.undecided):
                break
            listener.hear(token)
        listener.end()
        return listener.thinking_tokens


__all__ = ["Answer"]
