"""The engine at work for many at once: requests come and go while it steps. One thread; no clocks but for the bill.

    core.add("a", request)            raises UserError for a request that cannot be served
    for name, delta in core.step():   whoever got something; a request's last Delta carries its Completion
    core.cancel("a")                  its rows and pages are free again before the next step
"""

from __future__ import annotations

from collections.abc import Iterator

from mull.engine.engine import LocalEngine
from mull.types import Completion, Delta, Request


class Core:
    """STOPGAP while the paged engine is made: each request has a batch of its own."""

    def __init__(self, engine: LocalEngine):
        self.engine = engine
        self.streams: dict[str, tuple[Iterator[Delta], Request]] = {}

    @property
    def busy(self) -> bool:
        return bool(self.streams)

    def add(self, name: str, request: Request, salt: str = "") -> None:
        self.engine._check(request.tokens, room=1)
        self.streams[name] = (self.engine.stream(request), request)

    def cancel(self, name: str) -> None:
        self.streams.pop(name, None)

    def step(self) -> list[tuple[str, Delta]]:
        told = []
        for name, (stream, request) in list(self.streams.items()):
            delta = next(stream, None)
            if delta is None:
                delta = Delta(completion=Completion((), (), "cancelled", prompt_tokens=len(request.tokens)))
            told.append((name, delta))
            if delta.completion is not None:
                del self.streams[name]
        return told

    def stats(self) -> dict[str, float]:
        """Gauges and counters for /metrics; names as Prometheus has them."""
        return {"running": len(self.streams), "waiting": 0}


__all__ = ["Core"]
