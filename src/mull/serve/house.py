"""The house rules: who may ask, for what, how often, and the books. A `Gate` (gate.py) for one server.

The door is locked, so that asking needs a key, from the first key that is made on; `Settings.open` unlocks it.
Where there are several keys, the requests of one may hold half of the server's places, so that others find some.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mull.serve import keys, limits, usage
from mull.serve.dialogue import Ask
from mull.serve.errors import DRAIN_RETRY, Api, ApiError
from mull.serve.gate import Scope, Spent, Who
from mull.serve.keys import Allowance
from mull.serve.metrics import Metrics
from mull.serve.price import Shares
from mull.serve.settings import Settings
from mull.serve.store import connect
from mull.serve.usage import ANYBODY, Entry, Used, Writer


@dataclass
class Guest(Who):
    key: int = ANYBODY
    allowance: Allowance = field(default_factory=Allowance)
    choices: int = 0  # under way; 0 before it is let in
    entered: float = 0.0


class House:
    """Used from one event loop. `model` is the name in the books; `log` takes a line."""

    def __init__(self, settings: Settings, path: Path, model: str, metrics: Metrics, log: Callable[[str], None]):
        self.settings, self.model, self.metrics, self.log = settings, model, metrics, log
        self.db = connect(path)
        self.writer = Writer(path)
        self.turnstile = limits.Turnstile()
        self.shares = Shares()
        self.held: Counter[int] = Counter()  # places, by key
        self.draining = False

    @property
    def locked(self) -> bool:
        return not self.settings.open and keys.exist(self.db)

    def guest(self, scope: Scope) -> Guest:
        """Whose key it is. Raises ApiError (401). Where none is needed, one that is not known counts for nothing."""
        token = _token(scope)
        key = keys.find(self.db, token) if token else None
        if key is not None and key.revoked is not None:
            raise ApiError(401, "This API key was revoked.", code="invalid_api_key")
        if key is not None:
            return Guest(key.name, f"key {key.id}", key.id, key.allowance)
        if self.locked:
            what = "There is no such API key here" if token else "This server wants an API key"
            raise ApiError(401, f"{what}; send one that `mull keys create` made, as Authorization: Bearer KEY or "
                           "x-api-key: KEY.", code="invalid_api_key")  # fmt: skip
        return Guest()

    async def admit(self, scope: Scope, api: Api, size: int) -> Guest:
        guest = self.guest(scope)
        if self.draining:
            raise ApiError(503, "The server is shutting down.", code="shutting_down", retry_after=DRAIN_RETRY)
        if size > (most := self.settings.limits.body_bytes):
            raise ApiError(413, f"The body has {size} bytes; this server takes at most {most}.", code="body_too_large")
        return guest

    def allow(self, who: Who, ask: Ask) -> None:
        """Raises ApiError or UserError. A visit asks once or several times, and enters with the first."""
        assert isinstance(who, Guest)
        choices = ask.choices
        try:
            limits.check(ask, self.settings.limits)
            self._leave_room(who, choices)
        except Exception:
            if who.choices:  # the visit ends here, and nobody settles it
                self._leave(who, 0)
            raise
        if not who.choices:
            limits.check_spend(who.allowance, lambda day: usage.spent(self.db, who.key, day), time.time())
            self.turnstile.enter(who.key, who.allowance)
        if self.settings.log_prompts:
            self.log(f"ASKED key={who.name!r} {_asked(ask)}")
        entered = self.shares.enter(choices)
        who.entered = who.entered if who.choices else entered
        who.choices += choices
        self.held[who.key] += choices

    def _leave_room(self, who: Guest, choices: int) -> None:
        """Raises ApiError (429) where this is more than its key's share of the places beside what it holds already.

        One request alone may be larger. A key that has a `parallel` of its own is held to that instead.
        """
        places, others = self.settings.rows + self.settings.queue, self.held[who.key] - who.choices
        share = max(1, places // 2)
        if not others or others + who.choices + choices <= share or who.allowance.parallel is not None:
            return
        if keys.in_force(self.db) + (not self.locked) > 1:  # who needs no key counts as one
            why = f"This key has {others} of the {places} places of this server; more than {share} are not for one key."
            raise ApiError(429, why, code="rate_limit_exceeded", retry_after=1)

    async def settle(self, who: Who, spent: Spent) -> float | None:
        """Returns when it is in the books."""
        assert isinstance(who, Guest)
        choices = who.choices
        seconds = self._leave(who, spent.prompt_tokens + spent.completion_tokens)
        prompt, cached, completion = spent.prompt_tokens, spent.cached_tokens, spent.completion_tokens
        if not prompt and not completion:
            return None  # refused by the engine, or it went away before anything was drawn
        usd = self.settings.price.usd(prompt, cached, completion, seconds)
        self.metrics.answered(spent, choices, usd)
        used = Used(prompt, cached, completion, spent.reasoning_tokens, seconds, usd)
        await self.writer.write(Entry(who.key, self.model, used, time.time()))
        return usd

    def _leave(self, who: Guest, tokens: int) -> float:
        """Seconds of the machine that fall to it."""
        self.turnstile.leave(who.key, tokens)
        self.held[who.key] -= who.choices
        share = self.shares.leave(who.entered, who.choices)
        who.choices = 0
        return share

    def drain(self) -> None:
        """Nobody is let in any more."""
        self.draining = True

    def close(self) -> None:
        self.writer.close()
        self.db.close()


def _asked(ask: Ask) -> str:
    """On one line."""
    told = [asdict(message) for message in ask.messages] or {"prompt": ask.prompt}
    return json.dumps(told, ensure_ascii=False, default=dict)


def _token(scope: Scope) -> str:
    """OpenAI's clients send it as a bearer, Anthropic's in a header of its own."""
    found = ""
    for name, value in scope["headers"]:
        if name == b"x-api-key":
            return value.decode("latin-1")
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            found = value[7:].strip().decode("latin-1")
    return found


__all__ = ["Guest", "House"]
