"""Who may ask, and what it came to. The house rules (keys, limits, prices, the books) hook in here; a protocol only has

    visit = visit_of(request)
    events = visit.answer(ask)        the house has its say, then the answer is drawn; at its end it is in the books
    visit.usage, visit.usd            what it was, behind the last event
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, MutableMapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mull.engine.host import RefusedError, Ticket
from mull.serve.dialogue import Ask, Dialogue, Event, used
from mull.serve.errors import Api

Scope = MutableMapping[str, Any]


@dataclass
class Who:
    """Whoever asks, for one request. A gate may make its own kind of them, and keep there what `settle` needs."""

    name: str = ""
    salt: str = ""  # requests of different salts share no cached prompts


@dataclass
class Spent:
    """What one request used, whether its answer ended or the client went away."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    seconds: float = 0.0  # from its arrival
    first_seconds: float = 0.0  # from its arrival to its first token; 0 if there was none
    finish: str = "cancelled"  # of its first choice


class Gate(Protocol):
    """The house rules. All but `settle` refuse by raising ApiError."""

    async def admit(self, scope: Scope, api: Api, size: int) -> Who:
        """Before the body is read. `size` is what the client says it has, 0 where it says nothing."""
        ...

    def allow(self, who: Who, ask: Ask) -> None:
        """Before an answer is drawn: what it may ask for."""
        ...

    async def settle(self, who: Who, spent: Spent) -> float | None:
        """Once for each that `allow` let through, before the client sees the end. US dollars, if there is a price."""
        ...


class Open:
    """Anybody may ask for anything, and nothing is written down."""

    async def admit(self, scope: Scope, api: Api, size: int) -> Who:
        return Who()

    def allow(self, who: Who, ask: Ask) -> None:
        pass

    async def settle(self, who: Who, spent: Spent) -> float | None:
        return None


class Visit:
    """One request on its way through the house."""

    def __init__(self, id: str, api: Api, dialogue: Dialogue, gate: Gate):
        self.api: Api
        self.id, self.api, self.dialogue, self.gate = id, api, dialogue, gate
        self.who = Who()
        self.began = time.monotonic()
        self.spent = Spent()
        self.usd: float | None = None

    async def counted(self, ask: Ask) -> int:
        """Tokens of its prompt. Nothing is drawn and nothing paid, but a request it is, and the house has its say."""
        self.gate.allow(self.who, ask)
        try:
            return len(await self.dialogue.aside(self.dialogue.encode, ask))
        finally:
            await self.gate.settle(self.who, self.spent)

    async def answer(self, *asks: Ask) -> AsyncGenerator[Event]:
        """Events of the answer, settled behind the last. Several asks: their choices are numbered on.

        Raises what Dialogue.answer does, and ApiError where the house refuses.
        """
        self.dialogue.must_fit(asks)
        for ask in asks:
            self.gate.allow(self.who, ask)
        asks = tuple(replace(ask, salt=f"{self.who.salt}/{ask.salt}") for ask in asks)
        tickets: list[list[Ticket]] = []
        try:
            async with aclosing(self.dialogue.answer(*asks, tickets=tickets)) as events:
                async for event in events:
                    if event.finish is not None and event.index == 0:
                        self.spent.finish = event.finish
                    yield event
        except RefusedError:
            tickets = [own for own in tickets if any(one.made for one in own)]  # for the others nothing was done
            raise
        finally:
            await self._settle(tickets)

    async def _settle(self, tickets: Sequence[Sequence[Ticket]]) -> None:
        """It is counted at the engine: who leaves before the first event has used it all the same."""
        for own in tickets:
            counted = used(own)
            self.spent.prompt_tokens += counted["prompt_tokens"]
            self.spent.cached_tokens += counted["cached_tokens"]
            self.spent.completion_tokens += counted["completion_tokens"]
            self.spent.reasoning_tokens += counted["reasoning_tokens"]
        firsts = [one.first - self.began for own in tickets for one in own if one.first is not None]
        self.spent.first_seconds = min(firsts, default=0.0)
        self.spent.seconds = time.monotonic() - self.began
        self.usd = await self.gate.settle(self.who, self.spent)


def visit_of(scope: Scope) -> Visit:
    """That which app.py's doorkeeper left there."""
    return scope["state"]["visit"]


__all__ = ["Gate", "Open", "Scope", "Spent", "Visit", "Who", "visit_of"]
