"""What is asked, held against what may be asked: of one request by `check`, of a key over time by `Meter`.

Every bound is one sentence that says what it is. Nothing here knows a protocol: each says it in its own form of error.
"""

from __future__ import annotations

import calendar
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from mull.serve.dialogue import Ask
from mull.serve.errors import ApiError
from mull.serve.keys import Allowance
from mull.serve.settings import Limits
from mull.types import UserError

ROUNDING = 1e-9  # of a sum of fractions of a request


# one request


def check(ask: Ask, limits: Limits) -> None:
    """Raises UserError for the first bound that is passed.

    The prompt's length is held against its bound in dialogue.py, where it is known, and forms of answers in
    engine/grammar.py, where they are compiled.
    """
    s = ask.sampling
    for what, count, most in (
        ("messages", len(ask.messages), limits.messages),
        ("n", ask.n, limits.n),
        ("votes", ask.votes, limits.votes),
        ("stop strings", len(s.stop), limits.stop),
        ("characters in a stop string", max(map(len, s.stop), default=0), limits.stop_chars),
        ("stop tokens", len(s.stop_tokens), limits.stop_tokens),
        ("entries of logit_bias", len(s.logit_bias), limits.logit_bias),
        ("top_logprobs", s.top_logprobs, limits.top_logprobs),
        ("tools", len(ask.tools), limits.tools),
    ):
        if count > most:
            raise UserError(f"This server takes at most {most} for {what}, not {count}.")
    if (size := len(json.dumps(ask.tools, default=dict)) if ask.tools else 0) > limits.tools_bytes:
        raise UserError(f"The definitions of the tools have {size} bytes; this server takes {limits.tools_bytes}.")


# a key, over time


class Bucket:
    """So many a minute, and at once no more than a minute's worth. What is taken beyond is owed first."""

    def __init__(self, per_minute: float, clock: Callable[[], float]):
        self.per_minute, self.clock = per_minute, clock
        self.level, self.at = per_minute, clock()

    def wait(self, amount: float) -> float:
        """Seconds until so much is there; 0 if it is."""
        now = self.clock()
        self.level = min(self.per_minute, self.level + (now - self.at) * self.per_minute / 60)
        self.at = now
        missing = amount - self.level
        return missing * 60 / self.per_minute if missing > ROUNDING else 0.0

    def take(self, amount: float) -> None:
        self.level -= amount


@dataclass
class _Flow:
    """What a key does now."""

    requests: Bucket | None
    tokens: Bucket | None
    running: int = 0


@dataclass
class Turnstile:
    """Lets keys in, at most as often as each may. In memory: a server that starts anew owes and remembers nothing."""

    clock: Callable[[], float] = time.monotonic
    flows: dict[int, _Flow] = field(default_factory=dict)

    def enter(self, key: int, allowance: Allowance) -> None:
        """Raises ApiError (429). Who has entered leaves."""
        if key not in self.flows:
            self.flows[key] = _Flow(
                Bucket(allowance.rpm, self.clock) if allowance.rpm else None,
                Bucket(allowance.tpm, self.clock) if allowance.tpm else None,
            )
        flow = self.flows[key]
        if allowance.parallel and flow.running >= allowance.parallel:
            raise _limited(f"This key may have {allowance.parallel} requests under way at a time.", 1)
        if flow.tokens and (wait := flow.tokens.wait(1)):
            raise _limited(f"This key has used its {allowance.tpm} tokens a minute.", wait)
        if flow.requests:
            if wait := flow.requests.wait(1):
                raise _limited(f"This key has made its {allowance.rpm} requests a minute.", wait)
            flow.requests.take(1)
        flow.running += 1

    def leave(self, key: int, tokens: int = 0) -> None:
        """`tokens` are those of prompt and answer."""
        flow = self.flows[key]
        flow.running -= 1
        if flow.tokens:
            flow.tokens.wait(0)
            flow.tokens.take(tokens)


def _limited(why: str, wait: float) -> ApiError:
    return ApiError(429, why, code="rate_limit_exceeded", retry_after=max(1, math.ceil(wait)))


def check_spend(allowance: Allowance, spent: Callable[[str], float], at: float) -> None:
    """Raises ApiError (429) where the day's or the month's money is spent; `spent(day)` tells dollars since then."""
    now = datetime.fromtimestamp(at, UTC)
    midnight = 86400 - at % 86400
    left = calendar.monthrange(now.year, now.month)[1] - now.day
    for what, most, since, wait in (
        ("day", allowance.usd_per_day, f"{now:%Y-%m-%d}", midnight),
        ("month", allowance.usd_per_month, f"{now:%Y-%m}-01", midnight + left * 86400),
    ):
        if most is not None and spent(since) >= most:
            why = f"This key has spent its ${most:g} a {what}."
            raise ApiError(429, why, code="insufficient_quota", retry_after=math.ceil(wait))


__all__ = ["Turnstile", "check", "check_spend"]
