"""From a request of any protocol to events of any protocol: prompts are encoded, answers drawn, thoughts, text and tool
calls told apart. Protocols (openai.py, responses.py, anthropic.py) translate; what they share stands here.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile
from typing import Any, Literal, NamedTuple, TypeVar

from mull.engine.host import Host, Ticket
from mull.serve import effort
from mull.serve.calls import grammar_for, parser_for
from mull.serve.errors import LateError, TooLongError
from mull.serve.settings import Limits
from mull.text.chat import Chat
from mull.text.thoughts import Listener, Verbatim
from mull.text.tokenizer import Tokenizer
from mull.text.tools import Call
from mull.text.votes import majority
from mull.types import Completion, Delta, Message, Request, Sampling, UserError

T = TypeVar("T")
Finish = Literal["stop", "length", "tool_calls", "cancelled"]
ENCODERS = 2  # threads; each keeps memory for the longest it ever encoded


@dataclass(frozen=True)
class Ask:
    """What a protocol understood of a request. Nothing is encoded yet: first the house says whether it may be asked.

    `prompt`, a text or token ids, is instead of messages, for plain completion.
    """

    messages: tuple[Message, ...] = ()
    prompt: str | tuple[int, ...] = ()
    shorten: bool = False  # where there is no room, the oldest turns are left out
    sampling: Sampling = field(default_factory=Sampling)
    n: int = 1
    votes: int = 1  # draw so many, answer with the one most of them agree with (text/votes.py)
    effort: str | None = None  # none|minimal|low|medium|high|xhigh|max; sampling.thinking_tokens given wins
    tools: tuple[Mapping[str, Any], ...] = ()  # {type: function, function: {name, description, parameters}}
    tool_choice: str = "auto"  # auto, none, required, or the name of a function
    parallel: bool = True  # several calls in one answer are told, not only the first
    template: Mapping[str, Any] = field(default_factory=dict)  # chat_template_kwargs: enable_thinking, thinking
    salt: str = ""  # of the prefix cache: the key's identity, and what the client adds
    logprobs: bool = False  # events carry those of their tokens

    @property
    def choices(self) -> int:
        """Answers that are drawn for it."""
        return max(self.n, self.votes)


class Scored(NamedTuple):
    """A token that was drawn, and how likely it was."""

    token: int
    logprob: float
    alternatives: tuple[tuple[int, float], ...] = ()
    thought: bool = False  # it is the thinking's, markers included


@dataclass(frozen=True)
class ToolCall:
    """A whole call: `arguments` is JSON text, as the model wrote it."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Event:
    """Something of choice `index`. One of reasoning, text, tool and finish is set; a choice's last has `finish`."""

    index: int
    reasoning: str = ""
    text: str = ""
    tool: ToolCall | None = None
    finish: Finish | None = None
    completion: Completion | None = None  # with finish
    drawn: tuple[Completion, ...] = ()  # with finish: all that were drawn for it; several where there was a vote
    agreed: int = 0  # with finish: how many of `drawn` agree with it
    prompt: int = 0  # tokens of the prompt
    made: int = 0  # tokens of this choice so far
    logprobs: tuple[Scored, ...] = ()  # of the tokens behind it, where asked; the last may have some nobody sees


@dataclass
class Choice:
    """All events of one choice together."""

    index: int
    reasoning: str = ""
    text: str = ""
    tools: list[ToolCall] = field(default_factory=list)
    finish: Finish = "cancelled"
    completion: Completion | None = None
    drawn: tuple[Completion, ...] = ()
    agreed: int = 0
    logprobs: list[Scored] = field(default_factory=list)

    @property
    def said(self) -> str:
        """Text and calls, to be compared with other choices'."""
        return "\n".join([self.text, *(f"{call.name} {call.arguments}" for call in self.tools)]).strip()

    def add(self, event: Event) -> None:
        self.reasoning += event.reasoning
        self.text += event.text
        self.logprobs += event.logprobs
        if event.tool is not None:
            self.tools.append(event.tool)
        if event.finish is not None:
            self.finish, self.completion, self.drawn = event.finish, event.completion, event.drawn
            self.agreed = event.agreed


async def gather(events: AsyncIterator[Event]) -> list[Choice]:
    """The choices in order, for an answer that is told at once."""
    choices: dict[int, Choice] = {}
    async for event in events:
        choices.setdefault(event.index, Choice(event.index)).add(event)
    return [choices[index] for index in sorted(choices)]


class Dialogue:
    """Answers of one model. `name` is what clients call it, `fingerprint` says which weights draw and how.

    Of the limits those are kept here that need the prompt's length, and the time that an answer may take.
    """

    def __init__(
        self, host: Host, chat: Chat, name: str, max_length: int, fingerprint: str = "", limits: Limits | None = None
    ):  # fmt: skip
        self.host, self.chat, self.name, self.max_length = host, chat, name, max_length
        self.fingerprint, self.limits = fingerprint, limits or Limits()
        self._threads = ThreadPoolExecutor(ENCODERS, "encode")

    async def aside(self, work: Callable[..., T], *given: Any) -> T:
        """What encoding takes long for is done in one of few threads, so that the others' tokens go on coming."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)

    def encode(self, ask: Ask) -> tuple[int, ...]:
        """The prompt. Raises UserError."""
        if not ask.messages:
            return ids_of(ask.prompt, self.chat.tokenizer)
        ask = self._shortened(ask) if ask.shorten else ask
        tools = None if ask.tool_choice == "none" else ask.tools or None
        return tuple(self.chat.encode(ask.messages, self._thinks(ask), tools))

    def _shortened(self, ask: Ask) -> Ask:
        """Without the oldest turns, as few as make room for the answer."""
        room = min(ask.sampling.max_tokens, self.max_length // 4)
        first = next((at for at, message in enumerate(ask.messages) if message.role != "system"), 0)
        begins = [at for at, message in enumerate(ask.messages) if message.role == "user" and at > first]
        cuts, low = [first, *begins], 0
        high = len(cuts) - 1

        def cut(at: int) -> Ask:
            return replace(ask, shorten=False, messages=(*ask.messages[:first], *ask.messages[cuts[at] :]))

        while low < high:
            middle = (low + high) // 2
            if len(self.encode(cut(middle))) + room <= self.max_length:
                high = middle
            else:
                low = middle + 1
        return cut(low)

    def _thinks(self, ask: Ask) -> bool:
        wanted = effort.thinks(ask.sampling, ask.effort, ask.template)
        return wanted and bool(ask.messages) and self.chat.thinks

    def request(self, ask: Ask) -> Request:
        """What the engine is asked for the first choice. Raises UserError; may take long for a long conversation."""
        prompt = self.encode(ask)
        room = self.max_length - len(prompt)
        if room < 1:
            raise TooLongError(
                f"The prompt has {len(prompt)} tokens; this model holds {self.max_length}, the answer included."
            )
        if (most := self.limits.prompt_tokens) is not None and len(prompt) > most:
            raise TooLongError(f"The prompt has {len(prompt)} tokens; this server takes at most {most}.")
        if (most := self.limits.max_tokens) is not None:
            room = min(room, most)
        grammar = grammar_for(ask.tools, ask.tool_choice) or ask.sampling.grammar
        sampling = replace(ask.sampling, thinking=self._thinks(ask), verbatim=not ask.messages, grammar=grammar)
        return Request(prompt, effort.budgeted(sampling, ask.effort, room), (0,))

    def must_fit(self, asks: Sequence[Ask]) -> None:
        """Raises UserError for more answers than there is ever room for: waiting would be no use."""
        count, most = sum(ask.choices for ask in asks), self.host.rows + self.host.queue
        if any(ask.votes > 1 for ask in asks) and (len(asks) > 1 or asks[0].n > 1):
            raise UserError("votes draws several answers and gives one of them; n must be 1 then.")
        if count > most:
            raise UserError(f"This server has room for at most {most} answers at a time, not {count}.")

    async def answer(self, *asks: Ask, tickets: list[list[Ticket]] | None = None) -> AsyncGenerator[Event]:
        """Events of all choices as they come; broken off (aclose), it cancels what is under way.

        Several asks: their choices are numbered on, and all are drawn or none is. `tickets` is a list to be filled,
        with those of each ask: they count what the engine does, also what no event tells of (`used`).
        Raises UserError, BusyError, DiedError and LateError; the first two before any event.
        """
        self.must_fit(asks)
        requests = [await self.aside(self.request, ask) for ask in asks]
        tickets = [] if tickets is None else tickets
        late = None
        try:
            self.host.must_hold(sum(ask.choices for ask in asks))  # nobody comes between this and the last of them
            for ask, request in zip(asks, requests, strict=True):
                own = [self.host.submit(replace(request, key=(at,)), ask.salt) for at in range(ask.choices)]
                tickets.append(own)
            late = asyncio.get_running_loop().call_later(self.limits.seconds, self._late, tickets)
            events = self._told(asks, requests, tickets)
            async with aclosing(self._voted(events) if asks[0].votes > 1 else events) as heard:
                async for event in heard:
                    yield event
        finally:
            for ticket in chain(*tickets):
                ticket.cancel()
            if late is not None:
                late.cancel()

    def _late(self, tickets: Sequence[Sequence[Ticket]]) -> None:
        for ticket in chain(*tickets):
            ticket.inbox.put_nowait(LateError(f"The answer took longer than {self.limits.seconds:g} seconds."))

    async def _told(
        self, asks: Sequence[Ask], requests: Sequence[Request], tickets: Sequence[Sequence[Ticket]]
    ) -> AsyncGenerator[Event]:
        owners = [one for one in zip(asks, requests, strict=True) for _ in range(one[0].choices)]
        choices = [_Teller(index, self.chat, *owner) for index, owner in enumerate(owners)]
        async with aclosing(merged([aiter(ticket) for ticket in chain(*tickets)])) as deltas:
            async for index, delta in deltas:
                for event in choices[index].hear(delta):
                    yield event

    async def _voted(self, events: AsyncGenerator[Event]) -> AsyncGenerator[Event]:
        """The choice that most agree with, told when all have ended."""
        told: dict[int, list[Event]] = {}
        choices: dict[int, Choice] = {}
        async with aclosing(events):
            async for event in events:
                told.setdefault(event.index, []).append(event)
                choices.setdefault(event.index, Choice(event.index)).add(event)
        whole = [choice.said if choice.finish != "length" else "" for _, choice in sorted(choices.items())]
        index, share = majority(whole)  # an answer that was cut off has no vote
        drawn = tuple(one for index in range(len(choices)) for one in choices[index].drawn)
        for event in told[index]:
            if event.finish is not None:
                event = replace(event, drawn=drawn, agreed=round(share * len(drawn)))
            yield replace(event, index=0)


def ids_of(prompt: str | Sequence[int], tokenizer: Tokenizer) -> tuple[int, ...]:
    """Of a text the tokens, behind the one that begins texts where the model is used to it."""
    if not isinstance(prompt, str):
        return tuple(prompt)
    begin = [tokenizer.bos] if tokenizer.config.get("add_bos_token") and tokenizer.bos is not None else []
    ids = [*begin, *tokenizer.encode(prompt, special=True)]
    return tuple(ids or [tokenizer.end_of_text if tokenizer.bos is None else tokenizer.bos])


async def merged(streams: Sequence[AsyncGenerator[T]]) -> AsyncGenerator[tuple[int, T]]:
    """(which, what) as they come. The first that raises ends all."""
    if len(streams) == 1:
        async with aclosing(streams[0]):
            async for item in streams[0]:
                yield 0, item
        return
    inbox: asyncio.Queue[tuple[int, T] | Exception | None] = asyncio.Queue()

    async def pump(index: int, stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                inbox.put_nowait((index, item))
            inbox.put_nowait(None)
        except Exception as error:
            inbox.put_nowait(error)

    tasks = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    ended = 0
    try:
        while ended < len(streams):
            item = await inbox.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                ended += 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Teller:
    """Events from the Deltas of one choice."""

    def __init__(self, index: int, chat: Chat, ask: Ask, request: Request):
        self.index, self.prompt, self.made = index, len(request.tokens), 0
        self.listener: Listener | Verbatim | None = None  # tells which tokens are the thought's
        if ask.logprobs:
            sampling = request.sampling
            verbatim = sampling.verbatim
            self.listener = chat.verbatim() if verbatim else chat.listener(sampling.thinking, request.tokens)
        self.scored: list[Scored] = []  # not told yet
        self.parser = parser_for(chat, ask.tools, ask.tool_choice)
        self.parallel = ask.parallel
        self.calls = 0

    def hear(self, delta: Delta) -> Iterator[Event]:
        self._score(delta)
        if delta.reasoning:
            yield self._event(reasoning=delta.reasoning, logprobs=self._scores(thought=True))
        if self.parser is None:
            if delta.text:
                yield self._event(text=delta.text, logprobs=self._scores())
        else:
            yield from self._told(self.parser.feed(delta.text))
            if delta.completion is not None:
                yield from self._told(self.parser.flush())
        if (completion := delta.completion) is not None:
            finish: Finish = "tool_calls" if self.calls and completion.finish == "stop" else completion.finish
            scores = self._scores()
            yield self._event(finish=finish, completion=completion, drawn=(completion,), agreed=1, logprobs=scores)

    def _event(self, **parts: Any) -> Event:
        return Event(self.index, prompt=self.prompt, made=self.made, **parts)

    def _told(self, parts: Sequence[str | Call]) -> Iterator[Event]:
        for part in parts:
            if isinstance(part, str):
                yield self._event(text=part, logprobs=self._scores())
            elif self.parallel or not self.calls:
                self.calls += 1
                call = ToolCall(a_name("call_"), part.name, part.arguments)
                yield self._event(tool=call, logprobs=self._scores())

    def _score(self, delta: Delta) -> None:
        """Note the new tokens. That which ended the answer is none of its text's."""
        self.made += len(delta.tokens)
        if self.listener is None:
            return
        tokens = delta.tokens[:-1] if delta.tokens and self._ended(delta) else delta.tokens
        for at, token in enumerate(tokens):
            thought = self.listener.thinking
            self.listener.hear(token)
            thought = thought or self.listener.thinking
            others = delta.alternatives[at] if delta.alternatives else ()
            self.scored.append(Scored(token, delta.logprobs[at], others, thought))

    def _ended(self, delta: Delta) -> bool:
        done = delta.completion
        return done is not None and isinstance(done.stopped_by, int)

    def _scores(self, thought: bool = False) -> tuple[Scored, ...]:
        """Those not told yet, in order; of a thought only its own."""
        told = tuple(takewhile(lambda one: one.thought, self.scored) if thought else self.scored)
        del self.scored[: len(told)]
        return told


def a_seed() -> int:
    """For a request that names none: drawn once, and told with the answer, so that it can be had again."""
    return secrets.randbits(31)


def a_name(kind: str) -> str:
    """An id that nobody guesses: chatcmpl-..., resp_..., call_..."""
    return kind + secrets.token_hex(12)


def usage(completions: Sequence[Completion]) -> dict[str, int]:
    """prompt, cached, completion and reasoning tokens of the choices of one request; the prompt counts once."""
    return {
        "prompt_tokens": max((one.prompt_tokens for one in completions), default=0),
        "cached_tokens": min((one.cached_tokens for one in completions), default=0),
        "completion_tokens": sum(len(one.tokens) for one in completions),
        "reasoning_tokens": sum(one.thinking_tokens for one in completions),
    }


def used(tickets: Sequence[Ticket]) -> dict[str, int]:
    """As `usage`, of choices that may be cut short: their prompt counts from when the engine has it."""
    counted = usage([one.completion for one in tickets if one.completion is not None])
    short = [one for one in tickets if one.completion is None]
    counted["prompt_tokens"] = counted["prompt_tokens"] or max((one.prompt for one in short), default=0)
    counted["completion_tokens"] += sum(one.made for one in short)
    counted["reasoning_tokens"] += sum(one.thought for one in short)
    return counted


__all__ = [
    "Ask", "Choice", "Dialogue", "Event", "Finish", "Scored", "ToolCall", "a_name", "a_seed", "gather",
    "ids_of", "merged", "usage", "used",
]  # fmt: skip
