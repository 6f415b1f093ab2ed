"""What an answer costs: seconds of the machine at a price per hour, or tokens at prices per million.

Without a price nothing is said of money. Seconds are shared: while several requests are under way each pays its part of
every second, so that all of them together pay exactly for the time in which the machine was busy, waiting included.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pydantic import Field

from mull.config import Config


class Price(Config):
    """In US dollars. Both kinds may be given; they add up."""

    usd_per_hour: float | None = Field(default=None, ge=0)  # of the machine
    usd_per_million_input: float | None = Field(default=None, ge=0)  # tokens of the prompt
    usd_per_million_cached: float | None = Field(default=None, ge=0)  # those of them found in the cache; None: as input
    usd_per_million_output: float | None = Field(default=None, ge=0)  # the thinking included

    @property
    def known(self) -> bool:
        return any(value is not None for value in self.model_dump().values())

    def usd(self, prompt: int, cached: int, completion: int, seconds: float) -> float | None:
        """`cached` tokens are among those of the prompt; `seconds` are the request's share. None without a price."""
        if not self.known:
            return None
        full = self.usd_per_million_input or 0.0
        known = full if self.usd_per_million_cached is None else self.usd_per_million_cached
        tokens = (prompt - cached) * full + cached * known + completion * (self.usd_per_million_output or 0.0)
        return tokens / 1e6 + seconds / 3600 * (self.usd_per_hour or 0.0)


class Shares:
    """Divides time among the requests under way, each by its weight (its choices). A clock that runs slower the more
    there are, as in fair queueing: entering and leaving cost the same however many there are.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock = clock
        self.weight = 0
        self.virtual = 0.0  # seconds that one weight would have paid since the beginning
        self.last = clock()

    def _advance(self) -> float:
        now = self.clock()
        if self.weight:
            self.virtual += (now - self.last) / self.weight
        self.last = now
        return self.virtual

    def enter(self, weight: int = 1) -> float:
        """What `leave` wants to know."""
        entered = self._advance()
        self.weight += weight
        return entered

    def leave(self, entered: float, weight: int = 1) -> float:
        """Seconds that fall to it."""
        share = weight * (self._advance() - entered)
        self.weight -= weight
        return share


__all__ = ["Price", "Shares"]
